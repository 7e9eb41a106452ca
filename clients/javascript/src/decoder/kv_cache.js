// Keys and values of one sequence.

import { FastVLMError } from "../errors.js";

/** @import { DecoderFormat } from "../manifest.js" */
/** @import { Engine, Fetches, Tensors } from "../engine/engine.js" */

// JavaScript has no bfloat16, and not every engine has Float16Array. Uint16Array holds the bits.
const STORAGE = { float32: Float32Array, float16: Uint16Array };

// Room grows with an answer, and is not made for all of maxNewTokens: at each run onnxruntime-node makes
// array buffers of the tensors anew, and V8 collects garbage by the bytes that they have in all.
const SPARE_POSITIONS = 64;

/**
 * In place, each tensor has room for `capacity` positions and is both past and present. Elsewhere
 * each run returns tensors that are one run longer.
 */
export class KVCache {
  #engine;
  #sizes;
  #type;
  /** @type {Tensors} */
  #past = {};
  // Both objects are made once and not for each token, which would take 60 us with 24 layers.
  /** @type {Tensors} */
  #inputs = {};
  /** @type {Tensors} */
  #present = {};

  /**
   * @param {Engine} engine
   * @param {DecoderFormat} sizes
   * @param {string} type the manifest's `cache_dtype`
   */
  constructor(engine, sizes, type) {
    if (!isStorable(type)) {
      throw new FastVLMError(
        "engine",
        `keys and values are of type ${type}; expected float32 or float16: take another variant.`,
      );
    }
    this.#engine = engine;
    this.#sizes = sizes;
    this.#type = type;
    // A decoder of ONNX's own operators returns new tensors.
    this.isInPlace = engine.writesInPlace && sizes.operators === "microsoft";
    this.length = 0;
    this.capacity = 0;
    /**
     * Inputs of the last positions that ran one by one since the last run of several.
     *
     * @type {Float32Array[]}
     */
    this.steps = [];
    if (!this.isInPlace) this.#allocate(0);
  }

  /**
   * Make room for this many positions in all.
   *
   * @param {number} positions
   * @throws {FastVLMError} there is no memory.
   */
  reserve(positions) {
    if (!this.isInPlace || positions <= this.capacity) return;
    const capacity = positions + SPARE_POSITIONS;
    const before = this.#past;
    const { num_key_value_heads: heads, head_dim } = this.#sizes;
    const [from, to] = [this.capacity * head_dim, capacity * head_dim];
    this.#allocate(capacity);
    for (const [name, tensor] of Object.entries(before)) {
      const [old, grown] = [tensor.data, this.#past[name].data].map((data) => /** @type {Float32Array} */ (data));
      for (let head = 0; head < heads; head++) {
        grown.set(old.subarray(head * from, head * from + this.length * head_dim), head * to);
      }
    }
  }

  /**
   * All inputs of a run.
   *
   * @param {Tensors} others the inputs that are not `past_key_values`
   * @returns {Tensors} the same object at each call
   */
  inputs(others) {
    return Object.assign(this.#inputs, others);
  }

  /**
   * What a run has to return.
   *
   * @param {readonly string[]} names the graph's outputs
   * @returns {readonly string[] | Fetches}
   */
  outputs(names) {
    if (!this.isInPlace) return names;
    /** @type {Fetches} */
    const fetches = { ...this.#present };
    for (const name of names) fetches[name] ??= null;
    return fetches;
  }

  /**
   * Take the positions that a run has appended.
   *
   * @param {Tensors} outputs
   * @param {number} count
   */
  append(outputs, count) {
    this.length += count;
    if (this.isInPlace) return;
    for (const [name, tensor] of Object.entries(this.#past)) {
      this.#past[name] = this.#inputs[name] = outputs[presentName(name)];
      tensor.dispose();
    }
  }

  /**
   * Forget the last positions of a cache that is in place.
   *
   * @param {number} length the positions that stay
   */
  truncate(length) {
    this.length = length;
    this.steps = [];
  }

  dispose() {
    for (const tensor of Object.values(this.#past)) tensor.dispose();
    this.#past = this.#inputs = this.#present = {};
  }

  /** @param {number} capacity */
  #allocate(capacity) {
    const { num_key_value_heads, head_dim, num_hidden_layers } = this.#sizes;
    const dims = [1, num_key_value_heads, capacity, head_dim];
    const Storage = STORAGE[this.#type];
    /** @type {Tensors} */
    const past = {};
    try {
      for (let layer = 0; layer < num_hidden_layers; layer++) {
        for (const kind of ["key", "value"]) {
          const data = new Storage(num_key_value_heads * capacity * head_dim);
          past[`past_key_values.${layer}.${kind}`] = new this.#engine.Tensor(this.#type, data, dims);
        }
      }
    } catch {
      throw new FastVLMError(
        "engine",
        `no memory for keys and values of ${capacity} positions; ask for fewer new tokens.`,
      );
    }
    this.#past = past;
    this.#inputs = { ...past };
    this.#present = Object.fromEntries(Object.entries(past).map(([name, tensor]) => [presentName(name), tensor]));
    this.capacity = capacity;
  }
}

/** @param {string} past */
const presentName = (past) => past.replace("past_key_values", "present");

/** @param {string} type @returns {type is keyof typeof STORAGE} */
const isStorable = (type) => Object.hasOwn(STORAGE, type);
