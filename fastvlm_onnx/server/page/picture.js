// A picture to ask about: the bytes of an image file.

import { PageError } from "./errors.js";

const JPEG_QUALITY = 0.92;
// A larger file is drawn again, as a JPEG.
const MAX_BYTES = 4_000_000;
const SENT_AS_THEY_ARE = ["image/jpeg", "image/png", "image/webp"];
const EXIF_WITHIN_BYTES = 65_536;

export class Picture {
  #dataUrl = null;

  /**
   * @param {Blob} blob an image file
   * @param {string} description of the picture for screen readers
   */
  constructor(blob, description) {
    this.blob = blob;
    this.description = description;
  }

  /** The picture as a data URL. */
  dataUrl() {
    this.#dataUrl ??= new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(this.blob);
    });
    return this.#dataUrl;
  }

  /** Show the picture in an <img>. */
  showIn(image) {
    const url = URL.createObjectURL(this.blob);
    image.onload = image.onerror = () => URL.revokeObjectURL(url);
    image.src = url;
    image.alt = this.description;
  }
}

/**
 * The present content of a video, canvas or bitmap.
 *
 * @param {number} maxSide the longer side is reduced to this many pixels
 * @returns {Promise<Picture>}
 */
export async function pictureOf(source, width, height, maxSide, description, type = "image/jpeg") {
  const scale = Math.min(1, maxSide / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, type, JPEG_QUALITY));
  if (!blob) throw new PageError("The browser could not store the picture.");
  return new Picture(blob, description);
}

/**
 * A file that the user chose. Small files keep their bytes. The model ignores the rotation that a
 * camera notes in a file, so files with such notes are drawn again as the user sees them.
 *
 * @param {File} file
 * @param {number} maxSide as `pictureOf`
 * @returns {Promise<Picture>}
 * @throws {PageError} the browser cannot read the file as an image.
 */
export async function pictureOfFile(file, maxSide) {
  const name = file.name || "the picture";
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new PageError(`${name} is not an image that this browser can read. Use JPEG, PNG or WebP.`);
  }
  const { width, height } = bitmap;
  const fits = file.size <= MAX_BYTES && Math.max(width, height) <= maxSide;
  if (fits && SENT_AS_THEY_ARE.includes(file.type) && !(await hasExif(file))) {
    bitmap.close();
    return new Picture(file, name);
  }
  const picture = await pictureOf(bitmap, width, height, maxSide, name);
  bitmap.close();
  return picture;
}

async function hasExif(file) {
  const start = await file.slice(0, EXIF_WITHIN_BYTES).text();
  return start.includes("Exif\0\0") || start.includes("eXIf");
}
