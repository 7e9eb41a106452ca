// onnxruntime-web.

import { FastVLMError, inOneLine } from "../errors.js";
import { Engine } from "./engine.js";
import { importOnnxruntime } from "./packages.js";

/** @import { LoadOptions } from "../load.js" */

/**
 * @param {"wasm" | "webgpu"} device
 * @param {LoadOptions} options
 * @throws {FastVLMError} onnxruntime-web cannot be loaded.
 */
export async function openEngine(device, { threads, wasmPaths }) {
  let ort;
  try {
    ort = await importOnnxruntime(device);
  } catch (error) {
    throw new FastVLMError(
      "engine",
      `onnxruntime-web cannot be loaded (${inOneLine(error)}); check that its files are served.`,
      { cause: error },
    );
  }
  ort.env.logLevel = "error";
  if (wasmPaths) ort.env.wasm.wasmPaths = wasmPaths;
  // Threads share memory, which a page may do only where it is cross-origin isolated.
  if (!globalThis.crossOriginIsolated) ort.env.wasm.numThreads = 1;
  else if (threads !== undefined) ort.env.wasm.numThreads = threads;
  return new Engine(ort, device, { executionProviders: [device] }, nextTask);
}

/**
 * Why this browser offers no WebGPU; empty where it does.
 *
 * @returns {Promise<string>}
 */
export async function lackOfWebGPU() {
  const gpu = /** @type {any} */ (globalThis.navigator)?.gpu;
  if (!gpu) return "this browser has no WebGPU";
  try {
    return (await gpu.requestAdapter()) ? "" : "WebGPU offers no adapter";
  } catch (error) {
    return `WebGPU offers no adapter (${inOneLine(error)})`;
  }
}

/** Let events of this thread be handled: a run of WebAssembly leaves no time for them. */
function nextTask() {
  return new Promise((/** @type {(value: void) => void} */ resolve) => {
    // Unlike a timer, a message comes at once.
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
