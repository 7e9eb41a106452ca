// A question on its way to the decoder: images become features, and parts of a prompt embeddings.

import { FastVLMError } from "./errors.js";
import { ImageFeatures } from "./image/image_encoder.js";

/** @import { Components, ImageInput } from "./model.js" */
/** @import { PromptPart } from "./text/prompt.js" */

/** @param {ImageInput | readonly ImageInput[] | null} image @returns {readonly ImageInput[]} */
export function imagesOf(image) {
  if (image === null) return [];
  return Array.isArray(image) ? image : [image];
}

/**
 * @param {Components} components
 * @param {readonly ImageInput[]} images
 * @param {{orient: boolean, signal?: AbortSignal}} options
 * @param {number} called moment of the call
 */
export async function encodeImages({ imageEncoder, readPixels }, images, { orient, signal }, called) {
  const read = [];
  for (const image of images) {
    signal?.throwIfAborted();
    const isEncoded = image instanceof ImageFeatures;
    read.push(isEncoded ? image : imageEncoder.preprocess(await readPixels(image, orient)));
  }
  const preprocessed = performance.now();
  const features = [];
  for (const image of read) {
    signal?.throwIfAborted();
    features.push(image instanceof ImageFeatures ? image : await imageEncoder.encode(image));
  }
  const times = { called, preprocess: preprocessed - called, vision: performance.now() - preprocessed };
  return { features, times };
}

/**
 * The parts of a prompt as the decoder gets them.
 *
 * @param {readonly PromptPart[]} parts
 * @param {readonly ImageFeatures[]} features
 */
export function withFeatures(parts, features) {
  return parts.map((part) => (Array.isArray(part) ? part : features[part.image].data));
}

/**
 * @param {Components} components
 * @param {readonly (number[] | Float32Array)[]} parts token ids, and rows of image features
 * @returns {Float32Array} inputs_embeds, [positions, hidden_size]
 */
export function embedParts({ embedding }, parts) {
  const rows = parts.map((part) => (Array.isArray(part) ? embedding.embed(part) : part));
  const embeds = new Float32Array(rows.reduce((sum, row) => sum + row.length, 0));
  let at = 0;
  for (const row of rows) {
    embeds.set(row, at);
    at += row.length;
  }
  return embeds;
}

/**
 * @param {number} positions
 * @param {number} contextLength
 * @throws {FastVLMError} the prompt leaves no room for an answer.
 */
export function roomForAnswer(positions, contextLength) {
  const room = contextLength - positions;
  if (room >= 1) return room;
  throw new FastVLMError(
    "prompt-too-long",
    `the prompt has ${positions} tokens, those of images included, and the context holds ` +
      `${contextLength}; shorten it by at least ${1 - room} tokens.`,
  );
}
