// Images to image features.

import { FastVLMError } from "../errors.js";
import { pixelValues } from "./resize.js";

/** @import { Engine, Graph } from "../engine/engine.js" */
/** @import { Pixels } from "./resize.js" */

// As the Python runtime.
const MAX_PIXELS = 178_956_970;
const MAX_SIDE = 65_535;

/** An image as the decoder gets it; good for one model's weights, variant and image size. */
export class ImageFeatures {
  /** @param {Float32Array} data [num_image_tokens, hidden_size] */
  constructor(data) {
    this.data = data;
  }
}

export class ImageEncoder {
  #engine;
  #visionEncoder;
  #projector;

  /**
   * @param {Engine} engine
   * @param {Graph} visionEncoder
   * @param {Graph} projector
   * @param {number} imageSize side of the square input in pixels
   * @param {number} numImageTokens
   */
  constructor(engine, visionEncoder, projector, imageSize, numImageTokens) {
    this.#engine = engine;
    this.#visionEncoder = visionEncoder;
    this.#projector = projector;
    this.imageSize = imageSize;
    this.numImageTokens = numImageTokens;
  }

  /**
   * @param {Pixels} pixels
   * @returns {Float32Array} pixel_values, [3, imageSize, imageSize]
   * @throws {FastVLMError} the image has no pixels or too many.
   */
  preprocess(pixels) {
    const { data, width, height, channels } = pixels;
    const found = `the image has ${width} x ${height} pixels`;
    if (!(width >= 1 && height >= 1)) throw new FastVLMError("input", `${found}; expected at least one.`);
    if (width * height > MAX_PIXELS || Math.max(width, height) > MAX_SIDE) {
      const most = `expected at most ${MAX_PIXELS} pixels and a side of ${MAX_SIDE}`;
      throw new FastVLMError("input", `${found}; ${most}: make it smaller.`);
    }
    if (data.length !== width * height * channels) {
      const values = `${found} and ${data.length} values`;
      throw new FastVLMError("input", `${values}; expected uint8 RGB or RGBA, row by row.`);
    }
    return pixelValues(pixels, this.imageSize);
  }

  /**
   * @param {Float32Array} values pixel_values, [3, imageSize, imageSize]
   * @returns {Promise<ImageFeatures>}
   */
  async encode(values) {
    const pixel_values = new this.#engine.Tensor("float32", values, [1, 3, this.imageSize, this.imageSize]);
    const { image_hidden_states } = await this.#visionEncoder.run({ pixel_values });
    const { image_features } = await this.#projector.run({ image_hidden_states });
    image_hidden_states.dispose();
    return new ImageFeatures(/** @type {Float32Array} */ (image_features.data));
  }

  async close() {
    await Promise.all([this.#visionEncoder.close(), this.#projector.close()]);
  }
}
