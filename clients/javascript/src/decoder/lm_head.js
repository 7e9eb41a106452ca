// lm_head in two forms: all logits, or the largest logit found by a screen in int4, which takes less
// time. docs/format.md says when the screen's answer is certain.

/** @import { Tensor } from "onnxruntime-common" */
/** @import { DecoderFormat } from "../manifest.js" */
/** @import { Engine, Graph } from "../engine/engine.js" */
/** @import { Logits } from "./sampler.js" */

const CANDIDATES = [64, 1024];
// A token outside the candidates would have to be off by this many times the candidates' root mean
// square.
const SAFE_MARGIN = 8;

export class LMHead {
  #lmHead;
  #screen;
  /** `num_candidates` of both runs of the screen. */
  #counts;

  /**
   * @param {Engine} engine
   * @param {Graph} lmHead hidden states to all logits
   * @param {Graph|null} screen hidden states to the likeliest tokens and their logits
   * @param {DecoderFormat} sizes
   */
  constructor(engine, lmHead, screen, sizes) {
    this.#lmHead = lmHead;
    this.#screen = screen;
    this.#counts = CANDIDATES.map((count) => {
      const wanted = BigInt64Array.of(BigInt(Math.min(count, sizes.vocab_size)));
      return new engine.Tensor("int64", wanted, [1]);
    });
  }

  /**
   * @param {Tensor} hiddenStates [1, 1, hidden_size]
   * @param {boolean} isGreedy only the largest logit is needed
   * @returns {Promise<Logits>} of the likeliest tokens, or of all
   */
  async run(hiddenStates, isGreedy) {
    const screen = isGreedy ? this.#screen : null;
    for (const count of screen ? this.#counts : []) {
      const candidates = await this.#candidates(/** @type {Graph} */ (screen), hiddenStates, count);
      if (isSafe(candidates.exact, candidates.rough)) {
        return { values: candidates.exact, ids: candidates.ids };
      }
    }
    const { logits } = await this.#lmHead.run({ hidden_states: hiddenStates });
    return { values: /** @type {Float32Array} */ (logits.data), ids: null };
  }

  /** @param {Graph} screen @param {Tensor} hiddenStates @param {Tensor} count */
  async #candidates(screen, hiddenStates, count) {
    const outputs = await screen.run({ hidden_states: hiddenStates, num_candidates: count });
    return {
      ids: /** @type {BigInt64Array} */ (outputs.token_ids.data),
      exact: /** @type {Float32Array} */ (outputs.token_logits.data),
      rough: /** @type {Float32Array} */ (outputs.screened_logits.data),
    };
  }
}

/**
 * @param {Float32Array} exact the candidates' logits
 * @param {Float32Array} rough the candidates' logits in int4, the largest of all
 * @returns {boolean} the largest exact logit is above that of every token outside the candidates.
 */
export function isSafe(exact, rough) {
  let squares = 0;
  for (let i = 0; i < exact.length; i++) squares += (exact[i] - rough[i]) ** 2;
  const error = Math.sqrt(squares / exact.length);
  return Math.max(...exact) - Math.min(...rough) >= SAFE_MARGIN * error;
}
