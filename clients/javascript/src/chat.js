// A conversation: turns keep their keys and values, so a question costs its own tokens.

import { answer, finalGeneration } from "./answer.js";
import { FastVLMError } from "./errors.js";
import { checkOptions } from "./options.js";
import { embedParts, encodeImages, imagesOf, roomForAnswer, withFeatures } from "./question.js";
import { checkPrompt, numPositions } from "./text/prompt.js";

/** @import { Generation, Piece } from "./answer.js" */
/** @import { KVCache } from "./decoder/kv_cache.js" */
/** @import { FastVLM, ImageInput } from "./model.js" */
/** @import { GenerationOptions } from "./options.js" */

/**
 * A question and its answer.
 *
 * @typedef {object} Turn
 * @property {string} prompt
 * @property {boolean} hasImage an image came with the prompt
 * @property {number[]} tokenIds the answer's tokens, as far as it came
 * @property {(number[] | Float32Array)[]} parts the question as the decoder gets it
 */

/** A conversation with a model; made by `FastVLM.chat`. It answers one question at a time. */
export class Chat {
  #model;
  /** @type {KVCache|null} */
  #cache = null;
  /** Tokens of the last answer that are not in the cache: the last sampled token is never run. @type {number[]} */
  #pending = [];
  #isAnswering = false;

  /**
   * @param {FastVLM} model
   * @throws {FastVLMError} the package's template has no turns.
   */
  constructor(model) {
    if (!model.components.template.hasTurns) {
      throw new FastVLMError("input", "the package's prompt template has no turns: it cannot converse.");
    }
    this.#model = model;
    /** @type {Turn[]} the oldest first */
    this.turns = [];
  }

  /**
   * Ask the next question.
   *
   * @param {string} prompt
   * @param {ImageInput | readonly ImageInput[] | null} [image] comes with the prompt; earlier images
   *   stay in their turns
   * @param {GenerationOptions} [options]
   * @returns {Promise<Generation>}
   * @throws {FastVLMError} as `FastVLM.generate`, or the chat is answering; the chat stays as it was.
   */
  async ask(prompt, image, options) {
    return finalGeneration(this.stream(prompt, image, options));
  }

  /**
   * `ask`, piece by piece. Where the iterator is left early, or the signal aborts, the answer so far
   * is part of the conversation.
   *
   * @param {string} prompt
   * @param {ImageInput | readonly ImageInput[] | null} [image]
   * @param {GenerationOptions} [options]
   * @returns {AsyncGenerator<Piece, void, void>}
   */
  async *stream(prompt, image = null, options = {}) {
    this.#checkRest();
    this.#isAnswering = true;
    try {
      yield* this.#answer(prompt, imagesOf(image), options);
    } finally {
      this.#isAnswering = false;
    }
  }

  /**
   * Take the place of all turns by others, such as those of a chat that was closed. The next question
   * runs them again.
   *
   * @param {readonly {prompt: string, image?: ImageInput | readonly ImageInput[] | null,
   *   answer: string}[]} turns the oldest first; an answer's tokens may differ from those that the
   *   model drew
   * @throws {FastVLMError} as `FastVLM.generate`, or the chat is answering; the chat stays as it was.
   */
  async restore(turns) {
    const { components } = this.#model;
    const restored = [];
    for (const { prompt, image = null, answer: text } of turns) {
      checkPrompt(prompt);
      const images = imagesOf(image);
      const { features } = await encodeImages(components, images, { orient: false }, 0);
      const parts = withFeatures(components.template.userTurn(images.length, prompt), features);
      const tokenIds = components.tokenizer.encode(text);
      restored.push({ prompt, hasImage: images.length > 0, tokenIds, parts });
    }
    this.reset();
    this.turns = restored;
  }

  /** Forget all turns and release their keys and values. */
  reset() {
    this.#checkRest();
    this.turns = [];
    this.#forgetCache();
  }

  /** @param {string} prompt @param {readonly ImageInput[]} images @param {GenerationOptions} options */
  async *#answer(prompt, images, options) {
    const called = performance.now();
    const components = this.#model.components;
    const { decoder, imageEncoder, template } = components;
    const checked = checkOptions(options);
    checkPrompt(prompt);

    // 1. Whether the question fits, and its images.
    const asked = template.userTurn(images.length, prompt);
    const earlier = this.#parts().reduce((sum, part) => sum + positionsOf(part, decoder.sizes), 0);
    const promptEnd = earlier + numPositions(asked, imageEncoder.numImageTokens);
    const room = roomForAnswer(promptEnd, decoder.sizes.context_length);
    const maxNewTokens = Math.min(checked.maxNewTokens, room);
    const { features, times } = await encodeImages(components, images, checked, called);
    const question = withFeatures(asked, features);

    // 2. The parts that the cache lacks: all of them after a question that was not run to its end.
    const uncached = this.#cache ? [this.#pending, template.endOfTurn()] : this.#parts();
    const cache = (this.#cache ??= decoder.newCache());
    const embeds = embedParts(components, [...uncached, ...question]);

    // 3. The answer. However it ends, the cache and the turns agree.
    /** @type {number[]} */
    const tokenIds = [];
    try {
      yield* answer(components, embeds, cache, tokenIds, { ...checked, maxNewTokens }, times);
    } finally {
      if (cache.length < promptEnd) {
        this.#forgetCache();
      } else {
        this.turns.push({ prompt, hasImage: images.length > 0, tokenIds, parts: question });
        this.#pending = tokenIds.slice(cache.length - promptEnd);
      }
    }
  }

  /** The system text and all turns as the decoder gets them. @returns {(number[] | Float32Array)[]} */
  #parts() {
    const { template } = this.#model.components;
    const end = template.endOfTurn();
    return [template.system(), ...this.turns.flatMap(({ parts, tokenIds }) => [...parts, tokenIds, end])];
  }

  #checkRest() {
    if (!this.#isAnswering) return;
    throw new FastVLMError("input", "the chat is answering; await the answer or abort it first.");
  }

  #forgetCache() {
    this.#cache?.dispose();
    this.#cache = null;
    this.#pending = [];
  }
}

/** @param {number[] | Float32Array} part @param {{hidden_size: number}} sizes */
const positionsOf = (part, { hidden_size }) =>
  Array.isArray(part) ? part.length : part.length / hidden_size;
