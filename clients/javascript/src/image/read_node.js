// Pixels of the images that Node programs have.

import { FastVLMError, inOneLine } from "../errors.js";

/** @import { Pixels } from "./resize.js" */

/**
 * @param {any} image `{data, width, height}` with uint8 RGB or RGBA, or an object of `sharp`
 * @returns {Promise<Pixels>}
 * @throws {FastVLMError} it is none of these, or sharp cannot decode it.
 */
export async function readPixels(image) {
  if (isSharp(image)) return readSharp(image);
  const { data, width, height } = image ?? {};
  const isBytes = data instanceof Uint8Array || data instanceof Uint8ClampedArray;
  if (!isBytes || !Number.isInteger(width) || !Number.isInteger(height)) {
    throw new FastVLMError(
      "input",
      `the image is ${describe(image)}; expected {data, width, height} with uint8 RGB or RGBA, or ` +
        "sharp(file), which decodes image files.",
    );
  }
  return { data, width, height, channels: data.length === 3 * width * height ? 3 : 4 };
}

/** @param {any} image */
function isSharp(image) {
  return typeof image?.toColourspace === "function" && typeof image.toBuffer === "function";
}

/** @param {import("sharp").Sharp} image @returns {Promise<Pixels>} */
async function readSharp(image) {
  try {
    // The alpha channel is dropped, as predict.py does, and not blended.
    const raw = image.clone().toColourspace("srgb").removeAlpha().raw({ depth: "uchar" });
    const { data, info } = await raw.toBuffer({ resolveWithObject: true });
    return { data, width: info.width, height: info.height, channels: /** @type {3 | 4} */ (info.channels) };
  } catch (error) {
    throw new FastVLMError(
      "input",
      `the image cannot be decoded (${inOneLine(error)}); expected an image file that sharp reads.`,
      { cause: error },
    );
  }
}

/** @param {unknown} image */
function describe(image) {
  if (image === null || typeof image !== "object") return typeof image;
  return `an object of ${image.constructor?.name ?? "no class"}`;
}
