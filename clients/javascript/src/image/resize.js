// An image into pixel_values: black borders to a square, Pillow's bicubic filter, division by 255.
//
// Source: Pillow's ImagingResample for 8 bits a channel: coefficients in fixed point, rows first,
// columns second, rounded to 8 bits after each.

const PRECISION_BITS = 32 - 8 - 2;
const ONE = 1 << PRECISION_BITS;
const HALF = 1 << (PRECISION_BITS - 1);
const SUPPORT = 2; // pixels to each side of the centre
const A = -0.5;

/**
 * Pixels of an image, row by row.
 *
 * @typedef {object} Pixels
 * @property {Uint8Array | Uint8ClampedArray} data height * width * channels values
 * @property {number} width
 * @property {number} height
 * @property {3 | 4} channels RGB or RGBA; alpha is dropped
 */

/**
 * @param {Pixels} image
 * @param {number} imageSize side of the output in pixels
 * @returns {Float32Array} [3, imageSize, imageSize], values from 0 to 1
 */
export function pixelValues(image, imageSize) {
  const { width, height } = image;
  const side = Math.max(width, height);
  const columns = filtersOf(side, imageSize, (side - width) >> 1, width);
  const rows = filtersOf(side, imageSize, (side - height) >> 1, height);
  return resizeHeight(resizeWidth(image, columns), rows);
}

/**
 * The image's pixels that each output pixel reads, and their weights in fixed point. Pixel `i` reads
 * from `first[i]` on, with the weights from `offsets[i]` up to `offsets[i + 1]`.
 *
 * @typedef {{first: Int32Array, offsets: Int32Array, weights: Int32Array}} Filters
 */

/**
 * The filters of one direction. The square's borders are black, so their weights are left out.
 *
 * @param {number} side of the square in pixels
 * @param {number} size of the output in pixels
 * @param {number} before pixels of the square before the image
 * @param {number} length pixels of the image
 * @returns {Filters}
 */
function filtersOf(side, size, before, length) {
  const scale = side / size;
  const filterScale = Math.max(scale, 1);
  const support = SUPPORT * filterScale;
  const first = new Int32Array(size);
  const offsets = new Int32Array(size + 1);
  const weights = [];
  for (let i = 0; i < size; i++) {
    const center = (i + 0.5) * scale;
    const begin = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(side, Math.trunc(center + support + 0.5));
    const exact = [];
    let sum = 0;
    for (let x = begin; x < end; x++) {
      const weight = bicubic((x - center + 0.5) * (1 / filterScale));
      exact.push(weight);
      sum += weight;
    }
    const inImage = Math.max(begin, before);
    for (let x = inImage; x < Math.min(end, before + length); x++) {
      const weight = exact[x - begin];
      const scaled = (sum === 0 ? weight : weight / sum) * ONE;
      weights.push(Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5));
    }
    first[i] = inImage - before;
    offsets[i + 1] = weights.length;
  }
  return { first, offsets, weights: Int32Array.from(weights) };
}

/** @param {number} x */
function bicubic(x) {
  const distance = Math.abs(x);
  if (distance < 1) return ((A + 2) * distance - (A + 3)) * distance * distance + 1;
  if (distance < 2) return (((distance - 5) * distance + 8) * distance - 4) * A;
  return 0;
}

// In both loops `Math.imul` and `| 0` say that all numbers have 32 bits, without which V8 computes
// in float64, at half the speed. Two pixels at a time take a sixth less time than one.

/**
 * @param {Pixels} image
 * @param {Filters} filters of the output's columns
 * @returns {Uint32Array} [image.height, columns], a pixel's red in the lowest byte
 */
function resizeWidth({ data, width, height, channels }, { first, offsets, weights }) {
  const size = first.length;
  const resized = new Uint32Array(size * height);
  for (let to = 0, y = 0; y < height; y++) {
    for (let x = 0; x < size; x++, to++) {
      let r = HALF, g = HALF, b = HALF;
      let at = channels * (y * width + first[x]);
      let k = offsets[x];
      const end = offsets[x + 1];
      for (; k + 1 < end; k += 2) {
        const weight = weights[k];
        const nextWeight = weights[k + 1];
        const next = at + channels;
        r = (r + Math.imul(data[at], weight) + Math.imul(data[next], nextWeight)) | 0;
        g = (g + Math.imul(data[at + 1], weight) + Math.imul(data[next + 1], nextWeight)) | 0;
        b = (b + Math.imul(data[at + 2], weight) + Math.imul(data[next + 2], nextWeight)) | 0;
        at = next + channels;
      }
      if (k < end) {
        r = (r + Math.imul(data[at], weights[k])) | 0;
        g = (g + Math.imul(data[at + 1], weights[k])) | 0;
        b = (b + Math.imul(data[at + 2], weights[k])) | 0;
      }
      resized[to] = clip(r) | (clip(g) << 8) | (clip(b) << 16);
    }
  }
  return resized;
}

/**
 * Resize to the output's height, divide by 255, and put the channels first.
 *
 * @param {Uint32Array} pixels [height, size], as `resizeWidth` returns them
 * @param {Filters} filters of the output's rows
 * @returns {Float32Array} [3, size, size], values from 0 to 1
 */
function resizeHeight(pixels, { first, offsets, weights }) {
  const size = first.length;
  const plane = size * size;
  const values = new Float32Array(3 * plane);
  for (let to = 0, y = 0; y < size; y++) {
    const end = offsets[y + 1];
    for (let x = 0; x < size; x++, to++) {
      let r = HALF, g = HALF, b = HALF;
      let at = first[y] * size + x;
      let k = offsets[y];
      for (; k + 1 < end; k += 2, at += 2 * size) {
        const weight = weights[k];
        const nextWeight = weights[k + 1];
        const pixel = pixels[at];
        const next = pixels[at + size];
        r = (r + Math.imul(pixel & 255, weight) + Math.imul(next & 255, nextWeight)) | 0;
        g = (g + Math.imul((pixel >> 8) & 255, weight) + Math.imul((next >> 8) & 255, nextWeight)) | 0;
        b = (b + Math.imul(pixel >> 16, weight) + Math.imul(next >> 16, nextWeight)) | 0;
      }
      if (k < end) {
        r = (r + Math.imul(pixels[at] & 255, weights[k])) | 0;
        g = (g + Math.imul((pixels[at] >> 8) & 255, weights[k])) | 0;
        b = (b + Math.imul(pixels[at] >> 16, weights[k])) | 0;
      }
      values[to] = clip(r) * (1 / 255);
      values[plane + to] = clip(g) * (1 / 255);
      values[2 * plane + to] = clip(b) * (1 / 255);
    }
  }
  return values;
}

/** @param {number} sum in fixed point @returns {number} 8 bits */
function clip(sum) {
  const value = sum >> PRECISION_BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}
