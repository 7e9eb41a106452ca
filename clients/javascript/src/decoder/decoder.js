// The decoder's graphs: embeddings in, logits out.

import { KVCache } from "./kv_cache.js";
import { LMHead } from "./lm_head.js";

/** @import { DecoderFormat } from "../manifest.js" */
/** @import { Engine, Graph } from "../engine/engine.js" */
/** @import { Logits } from "./sampler.js" */

/**
 * @typedef {object} DecoderGraphs
 * @property {Graph} decoder computes logits, or the hidden states that `lm_head` reads
 * @property {Graph} [prefill] runs prompts, without logits
 * @property {Graph} [lm_head]
 * @property {Graph} [lm_head_screen]
 */

export class Decoder {
  #engine;
  #graphs;
  #cacheType;
  #lmHead;

  /**
   * @param {Engine} engine
   * @param {DecoderGraphs} graphs
   * @param {DecoderFormat} sizes
   * @param {string} cacheType the manifest's `cache_dtype`
   */
  constructor(engine, graphs, sizes, cacheType) {
    this.#engine = engine;
    this.#graphs = graphs;
    this.#cacheType = cacheType;
    this.sizes = sizes;
    const { lm_head, lm_head_screen } = graphs;
    this.#lmHead = lm_head ? new LMHead(engine, lm_head, lm_head_screen ?? null, sizes) : null;
  }

  /** An empty cache for one sequence. */
  newCache() {
    return new KVCache(this.#engine, this.sizes, this.#cacheType);
  }

  /**
   * Append positions to a cache.
   *
   * @param {Float32Array} embeds [positions, hidden_size]
   * @param {KVCache} cache
   * @param {boolean} isGreedy only the largest logit is needed
   * @returns {Promise<Logits>} of the last position
   */
  async run(embeds, cache, isGreedy) {
    const { decoder, prefill } = this.#graphs;
    const lastPosition = embeds.length - this.sizes.hidden_size;
    let outputs;
    if (!prefill || lastPosition === 0) {
      outputs = await this.#append(decoder, embeds, cache);
    } else if (this.#lmHead && prefill.outputNames.includes("hidden_states")) {
      outputs = await this.#append(prefill, embeds, cache);
    } else {
      await this.#append(prefill, embeds.subarray(0, lastPosition), cache);
      outputs = await this.#append(decoder, embeds.subarray(lastPosition), cache);
    }
    if (this.#lmHead) return this.#lmHead.run(outputs.hidden_states, isGreedy);
    return { values: /** @type {Float32Array} */ (outputs.logits.data), ids: null };
  }

  /** @param {Graph} graph @param {Float32Array} embeds @param {KVCache} cache */
  async #append(graph, embeds, cache) {
    const { Tensor } = this.#engine;
    const { hidden_size } = this.sizes;
    const count = embeds.length / hidden_size;
    const total = cache.length + count;
    cache.reserve(total);
    const feeds = cache.inputs({
      inputs_embeds: new Tensor("float32", embeds, [1, count, hidden_size]),
      attention_mask: new Tensor("int64", new BigInt64Array(total).fill(1n), [1, total]),
    });
    const outputs = await graph.run(feeds, cache.outputs(graph.outputNames));
    cache.append(outputs, count);
    return outputs;
  }

  async close() {
    await Promise.all(Object.values(this.#graphs).map((graph) => graph.close()));
  }
}
