// fastvlm-onnx for browsers.

import { lackOfWebGPU, openEngine } from "./engine/web.js";
import { Tokenizer } from "./engine/packages.js";
import { FastVLMError, inOneLine } from "./errors.js";
import { UrlFiles } from "./files/url.js";
import { GOLDEN_FILE, GoldenCheck, parseGolden } from "./golden.js";
import { readPixels } from "./image/read_web.js";
import { checkLoadOptions, lackOfVariant, openModel } from "./load.js";

/** @import { LoadOptions } from "./load.js" */
/** @import { FastVLM } from "./model.js" */

export * from "./exports.js";
export { loadInWorker } from "./worker/worker_model.js";

/**
 * Open a package in this thread. On a page, `loadInWorker` keeps the page alive meanwhile.
 *
 * @param {string | URL} address of the package's folder
 * @param {LoadOptions} [options]
 * @returns {Promise<FastVLM>}
 * @throws {FastVLMError} the package, the variant or the engine cannot be used.
 */
export async function load(address, options = {}) {
  const began = performance.now();
  checkLoadOptions(options);
  const { device = "auto" } = options;
  if (!["auto", "wasm", "webgpu"].includes(device)) {
    throw new FastVLMError("input", `the device is ${device}; expected auto, wasm or webgpu in browsers.`);
  }
  const files = await UrlFiles.open(new URL(address, globalThis.document?.baseURI ?? location.href), options);
  let deviceReason = "";
  if (device !== "wasm") {
    const { model, reason } = await loadOnWebGPU(files, options, began);
    if (model) return model;
    if (device === "webgpu") {
      throw new FastVLMError("engine", `WebGPU cannot be used: ${reason}; take the device wasm or auto.`);
    }
    deviceReason = reason;
  }
  const engine = await openEngine("wasm", options);
  return openModel({ Tokenizer, readPixels }, files, engine, options, { began, deviceReason });
}

/**
 * WebGPU's kernels are wrong on some adapters without any error, so only a model whose golden answers
 * are right is used.
 *
 * @param {UrlFiles} files
 * @param {LoadOptions} options
 * @param {number} began
 * @returns {Promise<{model: FastVLM|null, reason: string}>}
 */
async function loadOnWebGPU(files, options, began) {
  const lack = (await lackOfWebGPU()) || lackOfVariant(files.manifest, options.variant);
  if (lack) return { model: null, reason: lack };
  if (!Object.hasOwn(files.manifest.files, GOLDEN_FILE)) {
    return { model: null, reason: `the package has no ${GOLDEN_FILE} to check it with` };
  }
  let model = null;
  try {
    const golden = parseGolden(new TextDecoder().decode(await files.read(GOLDEN_FILE)));
    const engine = await openEngine("webgpu", options);
    const facts = { began, deviceReason: "" };
    model = await openModel({ Tokenizer, readPixels }, files, engine, options, facts);
    const imageOf = (/** @type {Uint8Array<ArrayBuffer>} */ bytes, /** @type {string} */ type) =>
      new Blob([bytes], { type });
    const [difference] = await new GoldenCheck(model, golden, imageOf).engineDifferences();
    if (!difference) return { model, reason: "" };
    await model.close();
    return { model: null, reason: `its results are wrong here (${difference})` };
  } catch (error) {
    options.signal?.throwIfAborted();
    await model?.close();
    // A package that is no good is no good elsewhere either.
    if (error instanceof FastVLMError && ["package", "download", "input"].includes(error.code)) {
      if (!error.message.startsWith(GOLDEN_FILE)) throw error;
    }
    return { model: null, reason: inOneLine(error) };
  }
}
