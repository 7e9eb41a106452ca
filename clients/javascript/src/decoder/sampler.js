// Sampling: logits -> token id, in the order of the Python runtime: repetition penalty,
// temperature, top-k, top-p, min-p.

/** @import { CheckedOptions } from "../options.js" */

/**
 * Logits of the next token.
 *
 * @typedef {object} Logits
 * @property {Float32Array} values
 * @property {BigInt64Array|null} ids the tokens that the values belong to, in no order; null where
 *   they are all tokens in order
 */

/**
 * The largest logit less the second largest.
 *
 * @param {Float32Array} values at least one
 */
export function lead(values) {
  let [first, second] = [-Infinity, -Infinity];
  for (const value of values) {
    if (value > first) [first, second] = [value, first];
    else if (value > second) second = value;
  }
  return first - second;
}

/** Draws the tokens of one answer. */
export class Sampler {
  #options;
  #random;
  /** @type {Set<number>} */
  #drawn = new Set();

  /** @param {CheckedOptions} options */
  constructor(options) {
    this.#options = options;
    this.#random = randomNumbers(options.seed ?? Math.floor(Math.random() * 2 ** 32));
  }

  /** Nothing but the largest logit is read. */
  get isGreedy() {
    return this.#options.temperature === 0 && this.#options.repetitionPenalty === 1;
  }

  /**
   * @param {Logits} logits all tokens, unless the sampler is greedy
   * @returns {number} token id
   */
  draw(logits) {
    if (this.isGreedy) return likeliest(logits);
    const values = this.#penalised(logits.values);
    const id = this.#options.temperature === 0 ? argmax(values) : this.#drawAmong(values);
    this.#drawn.add(id);
    return id;
  }

  /** @param {Float32Array} logits */
  #penalised(logits) {
    const penalty = Math.fround(this.#options.repetitionPenalty);
    if (penalty === 1 || this.#drawn.size === 0) return logits;
    const changed = logits.slice();
    for (const id of this.#drawn) {
      changed[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
    }
    return changed;
  }

  /** @param {Float32Array} logits */
  #drawAmong(logits) {
    const { temperature, topP, minP } = this.#options;
    const ids = this.#mostProbable(logits);
    const largest = logits[ids[0]];
    const weights = ids.map((id) => Math.exp((logits[id] - largest) / temperature));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    // The most probable token has the weight 1.
    const likely = weights.filter((weight) => weight >= minP).length;
    let kept = 0;
    let before = 0;
    while (kept < likely && (topP === 1 || before / total < topP)) before += weights[kept++];
    let rest = this.#random() * before;
    for (let i = 0; i < kept - 1; i++) {
      rest -= weights[i];
      if (rest < 0) return ids[i];
    }
    return ids[kept - 1];
  }

  /** Ids of the top-k tokens, the most probable first; tokens that tie with the k-th stay in. @param {Float32Array} logits */
  #mostProbable(logits) {
    const { topK } = this.#options;
    let least = -Infinity;
    if (topK > 0 && topK < logits.length) least = logits.slice().sort()[logits.length - topK];
    const ids = [];
    for (let id = 0; id < logits.length; id++) if (logits[id] >= least) ids.push(id);
    return ids.sort((a, b) => logits[b] - logits[a]);
  }
}

/** The token of the largest logit, and of the smallest id where several have it. @param {Logits} logits */
function likeliest({ values, ids }) {
  if (ids === null) return argmax(values);
  let best = 0;
  for (let i = 1; i < values.length; i++) {
    if (values[i] > values[best] || (values[i] === values[best] && ids[i] < ids[best])) best = i;
  }
  return Number(ids[best]);
}

/** @param {Float32Array} values */
function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/**
 * Numbers from 0 to 1.
 *
 * Source: mulberry32, with a state of 32 bits.
 *
 * @param {number} seed
 */
function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
}
