// One answer: prefill, sample, run the token, sample, until the answer ends.

import { Sampler } from "./decoder/sampler.js";
import { AnswerText } from "./text/answer_text.js";

/** @import { Components } from "./model.js" */
/** @import { KVCache } from "./decoder/kv_cache.js" */
/** @import { CheckedOptions } from "./options.js" */

/**
 * Milliseconds, but for `tokensPerSecond`.
 *
 * @typedef {object} Timings
 * @property {number} preprocess image -> pixel_values
 * @property {number} vision vision encoder and projector
 * @property {number} prefill the decoder's run over the prompt
 * @property {number} firstToken from the call until the first token is there
 * @property {number} decode all tokens after the first
 * @property {number} tokensPerSecond speed of `decode`; 0 if there was only one token
 *
 * @typedef {object} Generation
 * @property {string} text the answer without special tokens, and without white space at its ends
 * @property {number[]} tokenIds the generated tokens without the end token
 * @property {"stop" | "length"} finishReason "stop" at an end token or a stop text, "length" at
 *   maxNewTokens or at the end of the context
 * @property {number} promptTokens positions before the answer, those of images and of earlier turns
 *   included
 * @property {Timings} timings
 *
 * @typedef {object} Piece
 * @property {string} text may be empty in the last piece
 * @property {number[]} tokenIds the tokens that came since the piece before
 * @property {Generation|null} generation the whole answer in the last piece, else null
 */

/** Moments and times before the prefill. @typedef {{called: number, preprocess: number, vision: number}} StageTimes */

/**
 * @param {Components} components
 * @param {Float32Array} embeds the part of the prompt that the cache lacks, [positions, hidden_size]
 * @param {KVCache} cache takes the positions of the prompt and of the answer
 * @param {number[]} tokenIds takes the answer's tokens as they come
 * @param {CheckedOptions} options `maxNewTokens` is at most what the context has room for
 * @param {StageTimes} times
 * @returns {AsyncGenerator<Piece, void, void>}
 */
export async function* answer({ engine, tokenizer, decoder, embedding }, embeds, cache, tokenIds, options, times) {
  const { signal, maxNewTokens } = options;
  const sampler = new Sampler(options);
  const text = new AnswerText(tokenizer, options.stop);
  const eos = options.ignoreEos ? [] : decoder.sizes.eos_token_ids;
  const prefillBegan = performance.now();
  const promptTokens = cache.length + embeds.length / decoder.sizes.hidden_size;
  /** @type {Generation["finishReason"] | null} */
  let finishReason = null;
  let unread = "";
  let taken = 0;
  let prefilled = 0;
  let firstToken = 0;
  let samples = 0;
  let next = embeds;
  while (finishReason === null) {
    await engine.pause();
    signal?.throwIfAborted();
    const logits = await decoder.run(next, cache, sampler.isGreedy);
    if (samples === 0) prefilled = performance.now();
    const tokenId = sampler.draw(logits);
    if (samples++ === 0) firstToken = performance.now();
    if (eos.includes(tokenId)) {
      finishReason = "stop";
      break;
    }
    tokenIds.push(tokenId);
    unread += text.add(tokenId);
    if (text.hasStopped) finishReason = "stop";
    else if (tokenIds.length === maxNewTokens) finishReason = "length";
    else next = embedding.embed([tokenId]);
    if (unread && finishReason === null) {
      yield { text: unread, tokenIds: tokenIds.slice(taken), generation: null };
      [unread, taken] = ["", tokenIds.length];
    }
  }
  const ended = performance.now();
  unread += text.finish();
  const decode = ended - firstToken;
  const generation = {
    text: text.text,
    tokenIds: [...tokenIds],
    finishReason,
    promptTokens,
    timings: {
      preprocess: times.preprocess,
      vision: times.vision,
      prefill: prefilled - prefillBegan,
      firstToken: firstToken - times.called,
      decode,
      tokensPerSecond: samples > 1 && decode > 0 ? (1000 * (samples - 1)) / decode : 0,
    },
  };
  yield { text: unread, tokenIds: tokenIds.slice(taken), generation };
}

/**
 * Run an answer to its end.
 *
 * @param {AsyncIterable<Piece>} pieces
 * @returns {Promise<Generation>}
 */
export async function finalGeneration(pieces) {
  let generation = null;
  for await (const piece of pieces) generation = piece.generation;
  return /** @type {Generation} */ (generation);
}
