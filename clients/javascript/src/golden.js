// A package's golden.json against an open model: the answers that the exporter's runtime gave, with
// the differences that another engine may have.

import { FastVLMError } from "./errors.js";
import { embedParts, withFeatures } from "./question.js";

/** @import { FastVLM, ImageSource } from "./model.js" */
/** @import { Piece } from "./answer.js" */
/** @import { ImageFeatures } from "./image/image_encoder.js" */
/** @import { Manifest } from "./manifest.js" */

export const GOLDEN_FILE = "golden.json";
const GOLDEN_VERSION = 1;

/**
 * @typedef {object} Picture
 * @property {string} file bytes of the file in base64
 * @property {string} media_type
 * @property {string} rgb_sha256
 * @property {string|null} rgb_png the decoded picture as PNG in base64; null where `file` is one
 * @property {Record<string, string>} pixel_values_sha256 by image size
 *
 * @typedef {{picture: string|null, prompt: string, before_image: number[], after_image: number[]}} Turn
 *
 * @typedef {object} Answer
 * @property {{step: number, std: number, top: {id: number, logit: number}[]}[]} logits
 * @property {number[]} token_ids
 * @property {string} text
 * @property {string} finish_reason
 * @property {number} compared_tokens
 * @property {boolean} compares_text
 *
 * @typedef {{shape: number[], mean: number, std: number, samples: number[]}} Statistics
 *
 * @typedef {object} Values
 * @property {number} image_size
 * @property {{image_features: number, logits: number}} tolerance shares of a standard deviation
 * @property {Record<string, Statistics>} image_features by picture
 * @property {Record<string, Answer[]>} answers by conversation
 *
 * @typedef {object} Golden
 * @property {number} max_new_tokens
 * @property {Record<string, Picture>} pictures
 * @property {{text: string, ids: number[]}[]} texts
 * @property {Record<string, Turn[]>} conversations
 * @property {Record<string, Values>} variants
 *
 * @typedef {(bytes: Uint8Array<ArrayBuffer>, mediaType: string) => ImageSource} ImageOf makes an
 *   image that the model takes of a file's bytes
 */

/**
 * @param {string} text content of golden.json
 * @returns {Golden}
 * @throws {FastVLMError} the file has another version.
 */
export function parseGolden(text) {
  const golden = JSON.parse(text);
  if (golden.golden_version === GOLDEN_VERSION) return golden;
  throw new FastVLMError(
    "package",
    `${GOLDEN_FILE} has version ${golden.golden_version}, expected ${GOLDEN_VERSION}; install a newer fastvlm-onnx.`,
  );
}

/** Compares an open model with golden answers. Each method returns the differences that it found. */
export class GoldenCheck {
  #model;
  #golden;
  #imageOf;
  #values;
  /** @type {Map<string, Promise<ImageFeatures>>} */
  #features = new Map();

  /**
   * @param {FastVLM} model
   * @param {Golden} golden
   * @param {ImageOf} imageOf
   * @throws {FastVLMError} there are no answers of the model's variant.
   */
  constructor(model, golden, imageOf) {
    this.#model = model;
    this.#golden = golden;
    this.#imageOf = imageOf;
    this.#values = golden.variants[model.variant];
    if (this.#values?.image_size !== model.imageSize) {
      throw new FastVLMError(
        "package",
        `${GOLDEN_FILE} has no answers of ${model.variant} at ${model.imageSize} pixels; export the package again.`,
      );
    }
  }

  /** Everything. @returns {Promise<string[]>} */
  async differences() {
    const differences = [...this.textDifferences(), ...(await this.pictureDifferences())];
    for (const name of Object.keys(this.#values.image_features)) {
      differences.push(...(await this.featureDifferences(name)));
    }
    for (const name of Object.keys(this.#values.answers)) {
      differences.push(...(await this.logitDifferences(name)), ...(await this.answerDifferences(name)));
    }
    return differences;
  }

  /**
   * The engine alone: features of an image, and logits of a conversation.
   *
   * @returns {Promise<string[]>}
   */
  async engineDifferences() {
    const conversation = Object.entries(this.#golden.conversations).find(([name, turns]) =>
      turns[0].picture !== null && name in this.#values.answers);
    if (!conversation) return [`${GOLDEN_FILE} has no answer about a picture`];
    const [name, [{ picture }]] = conversation;
    const features = await this.featureDifferences(/** @type {string} */ (picture));
    return [...features, ...(await this.logitDifferences(name))];
  }

  /** Token ids of texts that a user types. */
  textDifferences() {
    const { tokenizer } = this.#model.components;
    return this.#golden.texts.flatMap(({ text, ids }) =>
      differing(`ids of ${JSON.stringify(text)}`, tokenizer.encode(text), ids));
  }

  /** Decoded pictures, and pixel_values of them. @returns {Promise<string[]>} */
  async pictureDifferences() {
    const differences = [];
    for (const [name, picture] of Object.entries(this.#golden.pictures)) {
      const { readPixels, imageEncoder } = this.#model.components;
      const pixels = await readPixels(this.#image(name), false);
      const values = imageEncoder.preprocess(pixels);
      differences.push(
        ...differing(`pixels of ${name}`, await sha256(rgbOf(pixels)), picture.rgb_sha256),
        ...differing(
          `pixel_values of ${name}`,
          await sha256(new Uint8Array(values.slice().buffer)),
          picture.pixel_values_sha256[imageEncoder.imageSize],
        ),
      );
    }
    return differences;
  }

  /** @param {string} name of a picture @returns {Promise<string[]>} */
  async featureDifferences(name) {
    const { data } = await this.#encoded(name);
    const { mean, std, samples } = this.#values.image_features[name];
    const allowed = this.#values.tolerance.image_features * std;
    const found = data.reduce((sum, value) => sum + value, 0) / data.length;
    const squares = data.reduce((sum, value) => sum + (value - found) ** 2, 0);
    const what = `image_features of ${name}`;
    return [
      ...distant(`mean of ${what}`, found, mean, allowed),
      ...distant(`deviation of ${what}`, Math.sqrt(squares / data.length), std, allowed),
      ...samples.flatMap((sample, i) => {
        const at = Math.floor((i * (data.length - 1)) / (samples.length - 1));
        return distant(`${what} at ${at}`, data[at], sample, allowed);
      }),
    ];
  }

  /** The prompt's ids, and logits. @param {string} name of a conversation @returns {Promise<string[]>} */
  async logitDifferences(name) {
    const { components } = this.#model;
    const { template, decoder, embedding } = components;
    const differences = [];
    /** @type {(number[] | Float32Array)[]} */
    let context = [];
    for (const [i, { picture, prompt, before_image, after_image }] of this.#golden.conversations[name].entries()) {
      const numImages = picture === null ? 0 : 1;
      const asked = i === 0
        ? template.prompt(numImages, prompt)
        : [template.endOfTurn(), ...template.userTurn(numImages, prompt)];
      const at = asked.findIndex((part) => !Array.isArray(part));
      const [before, after] = at < 0 ? [asked, []] : [asked.slice(0, at), asked.slice(at + 1)];
      const what = `turn ${i} of ${name}`;
      differences.push(
        ...differing(`ids of ${what}`, before.flat(), before_image),
        ...differing(`ids after the image in ${what}`, after.flat(), after_image),
      );
      const features = picture === null ? [] : [await this.#encoded(picture)];
      context = [...context, ...withFeatures(asked, features)];
      const answer = this.#values.answers[name][i];
      const cache = decoder.newCache();
      try {
        const embeds = embedParts(components, context);
        let logits = await decoder.run(embeds, cache, false);
        let step = 0;
        for (const wanted of answer.logits) {
          for (; step < wanted.step; step++) {
            logits = await decoder.run(embedding.embed([answer.token_ids[step]]), cache, false);
          }
          for (const { id, logit } of wanted.top) {
            const allowed = this.#values.tolerance.logits * wanted.std;
            differences.push(...distant(`logit ${id} at step ${step} of ${what}`, logits.values[id], logit, allowed));
          }
        }
      } finally {
        cache.dispose();
      }
      context.push(answer.token_ids);
    }
    return differences;
  }

  /** Tokens and texts of answers. @param {string} name of a conversation @returns {Promise<string[]>} */
  async answerDifferences(name) {
    const chat = this.#model.chat();
    const differences = [];
    for (const [i, { picture, prompt }] of this.#golden.conversations[name].entries()) {
      const answer = this.#values.answers[name][i];
      const image = picture === null ? null : this.#image(picture);
      const found = await chat.ask(prompt, image, { maxNewTokens: this.#golden.max_new_tokens });
      const what = `turn ${i} of ${name}`;
      if (!answer.compares_text) {
        const compared = answer.token_ids.slice(0, answer.compared_tokens);
        differences.push(...differing(`tokens of ${what}`, found.tokenIds.slice(0, compared.length), compared));
        break; // Later turns depend on the rest of this answer.
      }
      differences.push(
        ...differing(`tokens of ${what}`, found.tokenIds, answer.token_ids),
        ...differing(`text of ${what}`, found.text, answer.text),
        ...differing(`end of ${what}`, found.finishReason, answer.finish_reason),
      );
    }
    chat.reset();
    return differences;
  }

  /** @param {string} name */
  #image(name) {
    const { file, media_type, rgb_png } = this.#golden.pictures[name];
    // Decoders of JPEG files differ.
    const [base64, type] = rgb_png === null ? [file, media_type] : [rgb_png, "image/png"];
    return this.#imageOf(Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)), type);
  }

  /** @param {string} name */
  #encoded(name) {
    let features = this.#features.get(name);
    if (!features) {
      features = this.#model.encodeImage(this.#image(name));
      this.#features.set(name, features);
    }
    return features;
  }
}

/** @param {string} what @param {unknown} found @param {unknown} expected */
function differing(what, found, expected) {
  const [is, should] = [JSON.stringify(found), JSON.stringify(expected)];
  return is === should ? [] : [`${what}: found ${is}, expected ${should}`];
}

/** @param {string} what @param {number} found @param {number} expected @param {number} allowed */
function distant(what, found, expected, allowed) {
  const isNear = Math.abs(found - expected) <= allowed; // false for NaN too
  return isNear ? [] : [`${what}: found ${found}, expected ${expected} within ${allowed}`];
}

/** @param {import("./image/resize.js").Pixels} pixels */
function rgbOf({ data, channels }) {
  if (channels === 3) return Uint8Array.from(data);
  return Uint8Array.from({ length: (data.length / 4) * 3 }, (_, i) => data[Math.floor(i / 3) * 4 + (i % 3)]);
}

/** @param {Uint8Array<ArrayBuffer>} bytes */
async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
