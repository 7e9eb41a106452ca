// Prompts: the template's and the user's text as token ids, with places for images.

import { FastVLMError } from "../errors.js";

/** @import { PromptFormat } from "../manifest.js" */
/** @import { TextTokenizer } from "./tokenizer.js" */

/**
 * A part of a prompt: token ids, or the place of an image, given by its number from 0.
 *
 * @typedef {number[] | {image: number}} PromptPart
 */

export class PromptTemplate {
  #tokenizer;
  #text;

  /**
   * @param {TextTokenizer} tokenizer
   * @param {PromptFormat} text
   */
  constructor(tokenizer, text) {
    this.#tokenizer = tokenizer;
    this.#text = text;
  }

  /** The template can go on after an answer. */
  get hasTurns() {
    return this.#text.end_of_turn !== "";
  }

  /** Token ids before the first turn. */
  system() {
    return this.#tokenizer.encodeTemplate(this.#text.system);
  }

  /** Token ids after an answer, before the next turn. */
  endOfTurn() {
    return this.#tokenizer.encodeTemplate(this.#text.end_of_turn);
  }

  /**
   * A turn of the user, up to the place where the answer begins.
   *
   * @param {number} numImages images, which come before the text
   * @param {string} text
   * @returns {PromptPart[]}
   */
  userTurn(numImages, text) {
    return this.#turn(this.#text.user, numImages, text);
  }

  /**
   * A conversation of one turn: system text, turn, start of the answer.
   *
   * @param {number} numImages images, which come before the text
   * @param {string} text
   * @returns {PromptPart[]}
   */
  prompt(numImages, text) {
    return this.#turn(this.#text.system + this.#text.user, numImages, text);
  }

  /** @param {string} before @param {number} numImages @param {string} text @returns {PromptPart[]} */
  #turn(before, numImages, text) {
    const { after_image, end_of_turn, assistant } = this.#text;
    /** @type {PromptPart[]} */
    const parts = [this.#tokenizer.encodeTemplate(before)];
    for (let image = 0; image < numImages; image++) {
      if (image > 0) parts.push(this.#tokenizer.encode(after_image));
      parts.push({ image });
    }
    const question = this.#tokenizer.encode(numImages > 0 ? after_image + text : text);
    parts.push([...question, ...this.#tokenizer.encodeTemplate(end_of_turn + assistant)]);
    return parts;
  }
}

/**
 * Positions of the context that a prompt takes.
 *
 * @param {readonly PromptPart[]} parts
 * @param {number} numImageTokens
 */
export function numPositions(parts, numImageTokens) {
  return parts.reduce((sum, part) => sum + (Array.isArray(part) ? part.length : numImageTokens), 0);
}

/**
 * Refuse a prompt that cannot be tokenised.
 *
 * @param {unknown} prompt
 * @throws {FastVLMError} the prompt is no text, is empty, or is not valid Unicode.
 */
export function checkPrompt(prompt) {
  if (typeof prompt !== "string") {
    throw new FastVLMError("input", `the prompt is of type ${typeof prompt}; expected a text.`);
  }
  if (prompt.trim() === "") {
    throw new FastVLMError("input", 'the prompt is empty; ask something, for example "Describe the image.".');
  }
  const surrogate = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/.exec(prompt);
  if (surrogate) {
    throw new FastVLMError(
      "input",
      `the prompt has an unpaired surrogate at character ${surrogate.index + 1}; pass valid Unicode.`,
    );
  }
}
