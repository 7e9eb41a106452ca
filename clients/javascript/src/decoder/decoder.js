// The decoder's graphs: embeddings in, logits out.

import { KVCache } from "./kv_cache.js";
import { LMHead } from "./lm_head.js";
import { lead } from "./sampler.js";

/** @import { DecoderFormat, SecondPass } from "../manifest.js" */
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
  #prefillsWholePrompts;
  #secondPass;

  /**
   * @param {Engine} engine
   * @param {DecoderGraphs} graphs
   * @param {DecoderFormat} sizes
   * @param {string} cacheType the manifest's `cache_dtype`
   * @param {SecondPass|null} secondPass read only where `prefill` has hidden states for `lm_head`
   */
  constructor(engine, graphs, sizes, cacheType, secondPass) {
    this.#engine = engine;
    this.#graphs = graphs;
    this.#cacheType = cacheType;
    this.sizes = sizes;
    const { lm_head, lm_head_screen } = graphs;
    this.#lmHead = lm_head ? new LMHead(engine, lm_head, lm_head_screen ?? null, sizes) : null;
    this.#prefillsWholePrompts = this.#lmHead && graphs.prefill?.outputNames.includes("hidden_states");
    this.#secondPass = this.#prefillsWholePrompts ? secondPass : null;
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
    const isStep = lastPosition === 0;
    let outputs;
    if (!prefill || isStep) {
      outputs = await this.#append(decoder, embeds, cache);
    } else if (this.#prefillsWholePrompts) {
      outputs = await this.#append(prefill, embeds, cache);
    } else {
      await this.#append(prefill, embeds.subarray(0, lastPosition), cache);
      outputs = await this.#append(decoder, embeds.subarray(lastPosition), cache);
    }
    if (!this.#lmHead) return { values: /** @type {Float32Array} */ (outputs.logits.data), ids: null };
    const logits = await this.#lmHead.run(outputs.hidden_states, isGreedy);
    // Tensors that each run returns anew cannot be cut back.
    if (!prefill || !this.#secondPass || !cache.isInPlace) return logits;
    cache.steps = isStep ? [...cache.steps, embeds].slice(-this.#secondPass.positions) : [];
    if (!isStep || lead(logits.values) >= this.#secondPass.margin) return logits;
    const again = await this.#append(prefill, this.#takeBack(cache), cache);
    return this.#lmHead.run(again.hidden_states, isGreedy);
  }

  /** Forget the positions of the last steps, and return their inputs. @param {KVCache} cache */
  #takeBack(cache) {
    const { hidden_size } = this.sizes;
    const embeds = new Float32Array(cache.steps.length * hidden_size);
    for (const [i, step] of cache.steps.entries()) embeds.set(step, i * hidden_size);
    cache.truncate(cache.length - cache.steps.length);
    return embeds;
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
