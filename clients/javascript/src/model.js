// FastVLM: a package opened for use, from image and prompt to an answer.

import { answer, finalGeneration } from "./answer.js";
import { Chat } from "./chat.js";
import { FastVLMError } from "./errors.js";
import { checkOptions } from "./options.js";
import { embedParts, encodeImages, imagesOf, roomForAnswer, withFeatures } from "./question.js";
import { checkPrompt, numPositions } from "./text/prompt.js";

/** @import { Generation, Piece } from "./answer.js" */
/** @import { Decoder } from "./decoder/decoder.js" */
/** @import { TokenEmbedding } from "./decoder/token_embedding.js" */
/** @import { Device, Engine } from "./engine/engine.js" */
/** @import { ImageEncoder, ImageFeatures } from "./image/image_encoder.js" */
/** @import { Pixels } from "./image/resize.js" */
/** @import { Manifest } from "./manifest.js" */
/** @import { GenerationOptions } from "./options.js" */
/** @import { PromptTemplate } from "./text/prompt.js" */
/** @import { TextTokenizer } from "./text/tokenizer.js" */

/**
 * The parts of an open model.
 *
 * @typedef {object} Components
 * @property {Engine} engine
 * @property {TextTokenizer} tokenizer
 * @property {PromptTemplate} template
 * @property {ImageEncoder} imageEncoder
 * @property {Decoder} decoder
 * @property {TokenEmbedding} embedding
 * @property {(image: ImageSource, orient: boolean) => Promise<Pixels>} readPixels
 *
 * @typedef {object} Description
 * @property {Manifest} manifest the package's description of itself
 * @property {string} variant the variant that was opened
 * @property {number} imageSize side of the square input in pixels
 * @property {Device} device the device that runs the graphs
 * @property {string} deviceReason why it is not another; empty where none was wanted
 * @property {number} loadMilliseconds time that opening the package took
 */

/**
 * Anything that holds the pixels of an image. In Node: `{data, width, height}` with RGB or RGBA, or
 * an object of `sharp`. In browsers: a Blob or File, ImageBitmap, VideoFrame, ImageData, canvas,
 * <img> or <video>.
 *
 * @typedef {object} ImageSource
 *
 * @typedef {ImageSource | ImageFeatures} ImageInput
 */

/** A model ready to answer; made by `load`. It may be asked while it answers. */
export class FastVLM {
  /** @type {Components|null} */
  #components;

  /**
   * @param {Components} components
   * @param {Description} description
   */
  constructor(components, description) {
    this.#components = components;
    this.manifest = description.manifest;
    this.variant = description.variant;
    this.imageSize = description.imageSize;
    this.device = description.device;
    this.deviceReason = description.deviceReason;
    this.loadMilliseconds = description.loadMilliseconds;
  }

  /**
   * All parts.
   *
   * @throws {FastVLMError} the model is closed.
   */
  get components() {
    if (this.#components === null) {
      throw new FastVLMError("input", "the model is closed; load it again.");
    }
    return this.#components;
  }

  /**
   * Encode an image once, to ask about it often.
   *
   * @param {ImageSource} image
   * @param {{orient?: boolean}} [options] orient: turn an image file as its EXIF data say
   * @returns {Promise<ImageFeatures>} taken in the image's place by every way to ask
   * @throws {FastVLMError} the image cannot be read, or the model is closed.
   */
  async encodeImage(image, { orient = false } = {}) {
    const { imageEncoder, readPixels } = this.components;
    return imageEncoder.encode(imageEncoder.preprocess(await readPixels(image, orient)));
  }

  /**
   * Answer a question about an image.
   *
   * @param {ImageInput | readonly ImageInput[] | null} image several images come before the prompt
   *   in this order; null for a question without an image
   * @param {string} prompt
   * @param {GenerationOptions} [options]
   * @returns {Promise<Generation>}
   * @throws {FastVLMError} an image, the prompt or an option cannot be used, the prompt leaves no
   *   room, the engine failed, or the model is closed.
   */
  async generate(image, prompt, options) {
    return finalGeneration(this.stream(image, prompt, options));
  }

  /**
   * `generate`, piece by piece: the pieces' texts joined are the answer's text. The iterator may be
   * left at any point.
   *
   * @param {ImageInput | readonly ImageInput[] | null} image
   * @param {string} prompt
   * @param {GenerationOptions} [options]
   * @returns {AsyncGenerator<Piece, void, void>}
   */
  async *stream(image, prompt, options = {}) {
    const called = performance.now();
    const components = this.components;
    const { decoder, template, imageEncoder } = components;
    const checked = checkOptions(options);
    checkPrompt(prompt);
    const images = imagesOf(image);
    const parts = template.prompt(images.length, prompt);
    const positions = numPositions(parts, imageEncoder.numImageTokens);
    const room = roomForAnswer(positions, decoder.sizes.context_length);
    const { features, times } = await encodeImages(components, images, checked, called);
    const maxNewTokens = Math.min(checked.maxNewTokens, room);
    const cache = decoder.newCache();
    try {
      const embeds = embedParts(components, withFeatures(parts, features));
      yield* answer(components, embeds, cache, [], { ...checked, maxNewTokens }, times);
    } finally {
      cache.dispose();
    }
  }

  /** Begin a conversation that keeps its keys and values from turn to turn. */
  chat() {
    return new Chat(this);
  }

  /** Release the sessions once the runs that have begun are over. */
  async close() {
    const components = this.#components;
    this.#components = null;
    if (components === null) return;
    await Promise.all([components.imageEncoder.close(), components.decoder.close()]);
    components.embedding.close();
  }
}
