// Pixels of the images that browsers have.

import { FastVLMError, inOneLine } from "../errors.js";

/** @import { Pixels } from "./resize.js" */

/**
 * @param {any} image a Blob, ImageBitmap, VideoFrame, ImageData, canvas, <img> or <video>, or
 *   `{data, width, height}` with uint8 RGB or RGBA
 * @param {boolean} orient turn an image file as its EXIF data say
 * @returns {Promise<Pixels>}
 * @throws {FastVLMError} it is none of these, or the browser cannot decode it.
 */
export async function readPixels(image, orient) {
  const { data, width, height } = image ?? {};
  if (data instanceof Uint8Array || data instanceof Uint8ClampedArray) {
    return { data, width, height, channels: data.length === 3 * width * height ? 3 : 4 };
  }
  if (image instanceof Blob) return readBlob(image, orient);
  try {
    return drawn(image, ...sizeOf(image));
  } catch (error) {
    throw new FastVLMError(
      "input",
      `the image is ${image?.constructor?.name ?? typeof image} and cannot be drawn ` +
        `(${inOneLine(error)}); expected a Blob, ImageBitmap, VideoFrame, ImageData, canvas, <img> or <video>.`,
      { cause: error },
    );
  }
}

/** @param {Blob} blob @param {boolean} orient @returns {Promise<Pixels>} */
async function readBlob(blob, orient) {
  try {
    // A canvas multiplies colors by alpha, which loses those of pixels that are nearly transparent.
    const exact = blob.type === "image/png" && !orient ? await decodeExactly(blob) : null;
    if (exact) return exact;
    const bitmap = await createImageBitmap(blob, {
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
      imageOrientation: orient ? "from-image" : /** @type {any} */ ("none"),
    });
    const pixels = drawn(bitmap, bitmap.width, bitmap.height);
    bitmap.close();
    return pixels;
  } catch (error) {
    throw new FastVLMError(
      "input",
      `the image of type ${blob.type || "unknown"} and ${blob.size} bytes cannot be decoded ` +
        `(${inOneLine(error)}); expected an image file that this browser shows.`,
      { cause: error },
    );
  }
}

/** @param {Blob} blob @returns {Promise<Pixels|null>} null in browsers that lack a decoder without a canvas */
async function decodeExactly(blob) {
  const ImageDecoder = /** @type {any} */ (globalThis).ImageDecoder;
  if (!ImageDecoder) return null;
  const decoder = new ImageDecoder({
    data: await blob.arrayBuffer(),
    type: blob.type,
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
    preferAnimation: false,
  });
  try {
    const { image } = await decoder.decode();
    const options = { format: "RGBA", layout: [{ offset: 0, stride: 4 * image.displayWidth }] };
    const data = new Uint8Array(4 * image.displayWidth * image.displayHeight);
    await image.copyTo(data, options);
    const { displayWidth: width, displayHeight: height } = image;
    image.close();
    return { data, width, height, channels: 4 };
  } finally {
    decoder.close();
  }
}

/** @param {any} image @param {number} width @param {number} height @returns {Pixels} */
function drawn(image, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (
    canvas.getContext("2d", { willReadFrequently: true })
  );
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  return { data, width, height, channels: 4 };
}

/** @param {any} image @returns {[width: number, height: number]} in pixels of the image, not of the page */
function sizeOf(image) {
  return [
    image.videoWidth ?? image.naturalWidth ?? image.displayWidth ?? image.width,
    image.videoHeight ?? image.naturalHeight ?? image.displayHeight ?? image.height,
  ];
}
