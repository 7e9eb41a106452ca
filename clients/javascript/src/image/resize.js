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
  return rescale(resize(image, imageSize));
}

/**
 * Pad an image to a square and resize it.
 *
 * @param {Pixels} image
 * @param {number} size side of the output in pixels
 * @returns {Uint8Array} RGB, [size, size, 3]
 */
export function resize(image, size) {
  const { width, height } = image;
  const side = Math.max(width, height);
  const filters = filterRows(side, size);
  // The borders are black, so the filters' products with them are 0 and are left out.
  const narrow = narrowRows(image, filters, (side - width) >> 1, size);
  return narrowColumns(narrow, filters, height, (side - height) >> 1, size);
}

/**
 * Divide by 255 and put the channels first.
 *
 * @param {Uint8Array} pixels RGB, [side, side, 3]
 * @returns {Float32Array} [3, side, side], values from 0 to 1
 */
export function rescale(pixels) {
  const values = Float32Array.from({ length: 256 }, (_, value) => value * (1 / 255));
  const plane = pixels.length / 3;
  const rescaled = new Float32Array(pixels.length);
  for (let at = 0, i = 0; i < plane; i++) {
    rescaled[i] = values[pixels[at++]];
    rescaled[plane + i] = values[pixels[at++]];
    rescaled[2 * plane + i] = values[pixels[at++]];
  }
  return rescaled;
}

/**
 * The input pixels that one output pixel reads, with their weights in fixed point.
 *
 * @typedef {{first: number, weights: Int32Array}} Filter
 */

/**
 * @param {number} inputSize
 * @param {number} outputSize
 * @returns {Filter[]}
 */
function filterRows(inputSize, outputSize) {
  const scale = inputSize / outputSize;
  const filterScale = Math.max(scale, 1);
  const support = SUPPORT * filterScale;
  return Array.from({ length: outputSize }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(inputSize, Math.trunc(center + support + 0.5));
    const exact = [];
    let sum = 0;
    for (let x = first; x < end; x++) {
      const weight = bicubic((x - center + 0.5) * (1 / filterScale));
      exact.push(weight);
      sum += weight;
    }
    const weights = Int32Array.from(exact, (weight) => {
      const scaled = (sum === 0 ? weight : weight / sum) * ONE;
      return Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
    return { first, weights };
  });
}

/** @param {number} x */
function bicubic(x) {
  const distance = Math.abs(x);
  if (distance < 1) return ((A + 2) * distance - (A + 3)) * distance * distance + 1;
  if (distance < 2) return (((distance - 5) * distance + 8) * distance - 4) * A;
  return 0;
}

/**
 * @param {Pixels} image
 * @param {Filter[]} filters
 * @param {number} left columns of the square before the image
 * @param {number} size
 * @returns {Uint8Array} RGB, [image.height, size, 3]
 */
function narrowRows({ data, width, height, channels }, filters, left, size) {
  const narrow = new Uint8Array(3 * size * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < size; x++) {
      const { first, weights } = filters[x];
      const begin = Math.max(first - left, 0);
      const end = Math.min(first + weights.length - left, width);
      const skipped = begin - (first - left);
      let r = HALF, g = HALF, b = HALF;
      let at = channels * (y * width + begin);
      for (let i = begin, k = skipped; i < end; i++, k++, at += channels) {
        const weight = weights[k];
        r += data[at] * weight;
        g += data[at + 1] * weight;
        b += data[at + 2] * weight;
      }
      const to = 3 * (y * size + x);
      narrow[to] = clip(r);
      narrow[to + 1] = clip(g);
      narrow[to + 2] = clip(b);
    }
  }
  return narrow;
}

/**
 * @param {Uint8Array} narrow RGB, [height, size, 3]
 * @param {Filter[]} filters
 * @param {number} height
 * @param {number} top rows of the square before the image
 * @param {number} size
 * @returns {Uint8Array} RGB, [size, size, 3]
 */
function narrowColumns(narrow, filters, height, top, size) {
  const resized = new Uint8Array(3 * size * size);
  const width = 3 * size;
  const sums = new Int32Array(width);
  for (let y = 0; y < size; y++) {
    const { first, weights } = filters[y];
    const begin = Math.max(first - top, 0);
    const end = Math.min(first + weights.length - top, height);
    sums.fill(HALF);
    for (let row = begin; row < end; row++) {
      const weight = weights[row - (first - top)];
      const from = row * width;
      for (let i = 0; i < width; i++) {
        sums[i] = sums[i] + narrow[from + i] * weight;
      }
    }
    for (let i = 0; i < width; i++) resized[y * width + i] = clip(sums[i]);
  }
  return resized;
}

/** @param {number} sum in fixed point */
function clip(sum) {
  const value = sum >> PRECISION_BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}
