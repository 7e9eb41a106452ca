// ONNX Runtime as the rest of the client sees it: graphs that run, one run at a time.

import { FastVLMError, inOneLine } from "../errors.js";
import { embedBodyWeights } from "./embed_weights.js";
import { int8ProductsSaturate } from "./saturation.js";

/** @import * as Ort from "onnxruntime-common" */
/** @import { PackageFiles } from "../files/files.js" */

/**
 * @typedef {"cpu" | "wasm" | "webgpu"} Device `cpu` in Node, the others in browsers
 *
 * @typedef {{[name: string]: Ort.Tensor}} Tensors
 *
 * @typedef {{[name: string]: Ort.Tensor | null}} Fetches tensors that take outputs; null where ONNX
 *   Runtime makes one
 */

export class Engine {
  #ort;
  #options;
  /** @type {boolean|null} */
  #saturates = null;
  /** @type {Promise<unknown>} */
  #lastCreation = Promise.resolve();

  /**
   * @param {typeof Ort} ort
   * @param {Device} device
   * @param {Ort.InferenceSession.SessionOptions} options of each session
   * @param {() => Promise<void>} pause lets other tasks of the thread run, for the time between two
   *   runs
   */
  constructor(ort, device, options, pause) {
    this.pause = pause;
    this.#ort = ort;
    this.#options = options;
    this.device = device;
  }

  get Tensor() {
    return this.#ort.Tensor;
  }

  /** Outputs can be written where the inputs are. onnxruntime-web never fills a given output. */
  get writesInPlace() {
    return this.device === "cpu";
  }

  /** Version of ONNX Runtime. */
  get version() {
    const { node, web, common } = this.#ort.env.versions;
    return (this.device === "cpu" ? node : web) ?? common;
  }

  /**
   * @param {PackageFiles} files
   * @param {string} name graph file; its weights are those that the manifest names
   * @param {readonly string[]} onDevice outputs that stay in the device's memory
   * @throws {FastVLMError} the graph cannot be opened.
   */
  async open(files, name, onDevice = []) {
    const graph = files.manifest.graphs[name];
    const options = { ...this.#options };
    if (graph.int8_products && (await this.#hasSaturation())) {
      const entries = /** @type {object} */ (options.extra?.session);
      options.extra = { session: { ...entries, x64quantprecision: "1" } };
    }
    if (this.device === "webgpu" && onDevice.length > 0) {
      options.preferredOutputLocation = Object.fromEntries(onDevice.map((output) => [output, "gpu-buffer"]));
    }
    if (files.path) return this.#create(name, files.path(name), options);
    const model = await files.read(name);
    const externalData = await Promise.all(
      graph.weights.map(async (path) => ({ path, data: await files.read(path) })),
    );
    const weights = new Map(externalData.map(({ path, data }) => [path, data]));
    return this.#create(name, embedBodyWeights(model, weights), { ...options, externalData });
  }

  /** @param {string} name @param {any} source @param {Ort.InferenceSession.SessionOptions} options */
  async #create(name, source, options) {
    const create = () => this.#ort.InferenceSession.create(source, options);
    // onnxruntime-web opens one WebGPU session at a time.
    const creation = this.device === "webgpu" ? this.#lastCreation.then(create) : create();
    this.#lastCreation = creation.catch(() => undefined);
    try {
      return new Graph(name, await creation);
    } catch (error) {
      throw new FastVLMError(
        "engine",
        `${name}: ONNX Runtime ${this.version} cannot open it on ${this.device} ` +
          `(${inOneLine(error)}); take another variant or device, or free some memory.`,
        { cause: error },
      );
    }
  }

  /** Only ONNX Runtime's CPU kernels have products that saturate, and an option against it. */
  async #hasSaturation() {
    if (this.device !== "cpu") return false;
    this.#saturates ??= await int8ProductsSaturate(this.#ort);
    return this.#saturates;
  }
}

/** An open graph. A session takes one run at a time, so runs wait for each other. */
export class Graph {
  #session;
  #last = Promise.resolve();

  /**
   * @param {string} name
   * @param {Ort.InferenceSession} session
   */
  constructor(name, session) {
    this.name = name;
    this.#session = session;
  }

  get outputNames() {
    return this.#session.outputNames;
  }

  /**
   * @param {Tensors} feeds
   * @param {readonly string[] | Fetches} outputs
   * @returns {Promise<Tensors>}
   * @throws {FastVLMError} the run failed; the graph can be run again.
   */
  run(feeds, outputs = this.outputNames) {
    const run = this.#last.then(async () => {
      try {
        return /** @type {Tensors} */ (await this.#session.run(feeds, outputs));
      } catch (error) {
        throw new FastVLMError(
          "engine",
          `${this.name}: the run failed (${inOneLine(error)}); free some memory, or take another ` +
            "variant or device.",
          { cause: error },
        );
      }
    });
    this.#last = run.then(() => undefined, () => undefined);
    return run;
  }

  async close() {
    await this.#last;
    await this.#session.release();
  }
}
