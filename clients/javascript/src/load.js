// Open a package: choose a variant and an image size, check the files, open the graphs.

import { Decoder } from "./decoder/decoder.js";
import { TokenEmbedding } from "./decoder/token_embedding.js";
import { FastVLMError } from "./errors.js";
import { ImageEncoder } from "./image/image_encoder.js";
import { TOKENIZER_FILE, graphFiles, scaleFile } from "./manifest.js";
import { FastVLM } from "./model.js";
import { PromptTemplate } from "./text/prompt.js";
import { TextTokenizer } from "./text/tokenizer.js";

/** @import { Device, Engine, Graph } from "./engine/engine.js" */
/** @import { OnProgress, PackageFiles } from "./files/files.js" */
/** @import { DecoderGraphs } from "./decoder/decoder.js" */
/** @import { Components, Description } from "./model.js" */
/** @import { Manifest } from "./manifest.js" */
/** @import { TokenizerClass } from "./text/tokenizer.js" */

/**
 * @typedef {object} LoadOptions
 * @property {string} [variant] a variant of the package; the fastest for the device by default
 * @property {number} [imageSize] side of the square input in pixels; the package's default
 * @property {Device | "auto"} [device] `auto` by default: the CPU in Node. In browsers WebGPU where
 *   the package's golden answers were computed right on it, and else WebAssembly.
 * @property {number} [threads] threads of each graph; ONNX Runtime's own choice by default. More
 *   than one in a browser needs a page that is cross-origin isolated.
 * @property {OnProgress} [onProgress] is called as bytes are downloaded
 * @property {AbortSignal} [signal] ends the loading: the promise rejects with the signal's reason
 * @property {boolean} [cache] keep downloaded files in the browser's cache; true
 * @property {boolean} [telemetry] leave ONNX Runtime's telemetry in Node as it is; false turns it
 *   off
 * @property {string} [wasmPaths] address of the folder with the .wasm files of onnxruntime-web;
 *   beside its script by default
 */

/**
 * Parts that Node and browsers have of their own.
 *
 * @typedef {object} Platform
 * @property {TokenizerClass} Tokenizer
 * @property {Components["readPixels"]} readPixels
 */

// The fastest first, measured. WebAssembly has no fast kernel for weights in blocks: those of int4,
// and lm_head of int8, whose place `web` takes.
/** @type {Record<Device, string[]>} */
const PREFERRED = {
  cpu: ["fast", "int8", "web", "int4", "fp32", "fp16"],
  wasm: ["web", "int8", "fp32", "int4", "fast", "fp16"],
  webgpu: ["int4", "fp16", "fp32", "int8", "fast"],
};

const OPTIONS = [
  "variant", "imageSize", "device", "threads", "onProgress", "signal", "cache", "telemetry", "wasmPaths",
];

/**
 * @param {LoadOptions} options
 * @throws {FastVLMError} an option has another name, or is out of range.
 */
export function checkLoadOptions(options) {
  const unknown = Object.keys(options).find((name) => !OPTIONS.includes(name));
  if (unknown) throw new FastVLMError("input", `${unknown} is no option; expected one of ${OPTIONS.join(", ")}.`);
  const { threads } = options;
  if (threads === undefined || (Number.isInteger(threads) && threads >= 1)) return;
  throw new FastVLMError("input", `threads is ${threads}; expected an integer of 1 or more.`);
}

/**
 * @param {Platform} platform
 * @param {PackageFiles} files
 * @param {Engine} engine
 * @param {LoadOptions} options
 * @param {{began: number, deviceReason: string}} facts
 * @returns {Promise<FastVLM>}
 */
export async function openModel(platform, files, engine, options, { began, deviceReason }) {
  const { manifest } = files;
  const variant = chooseVariant(files, engine.device, options.variant);
  const imageSize = chooseImageSize(files, variant, options.imageSize);
  const names = variantFiles(manifest, variant, imageSize, engine.device);
  const { graphs, weights, embeddings } = names;
  if ("totalBytes" in files) files.totalBytes = names.totalBytes;

  // 1. Graphs are code, so they are checked before they are opened. Weights are numbers and cannot
  // harm before their check ends, which takes long.
  await files.check([...Object.values(graphs), TOKENIZER_FILE]);
  const decoderGraph = manifest.graphs[graphs.decoder];
  const present = presentNames(manifest.decoder.num_hidden_layers);
  /** @type {Map<string, Promise<Graph>>} */
  const opening = new Map();
  for (const [graph, file] of Object.entries(graphs)) {
    const onDevice = graph === "decoder" || graph === "prefill" ? present : [];
    opening.set(graph, engine.open(files, file, onDevice));
  }
  const settled = await Promise.allSettled([...opening.values(), files.check([...weights, ...embeddings])]);
  const open = /** @type {Record<string, Graph>} */ ({});
  for (const [i, graph] of [...opening.keys()].entries()) {
    const result = settled[i];
    if (result.status === "fulfilled") open[graph] = /** @type {Graph} */ (result.value);
  }

  // 2. The parts. Where one fails, those that are open are closed.
  try {
    // The check of the files comes last, and its error says more than ONNX Runtime's.
    const failed = settled.findLast((result) => result.status === "rejected");
    if (failed) throw failed.reason;
    options.signal?.throwIfAborted();
    const text = new TextDecoder().decode(await files.read(TOKENIZER_FILE));
    const tokenizer = new TextTokenizer(platform.Tokenizer, text, files.where);
    const { vision_encoder, projector, ...decoderGraphs } = open;
    const numImageTokens = Math.floor(imageSize / manifest.image.patch_size) ** 2;
    const cacheType = decoderGraph.cache_dtype ?? "float32";
    const { embed_tokens, second_pass = null } = manifest.variants[variant];
    const components = {
      engine,
      tokenizer,
      template: new PromptTemplate(tokenizer, manifest.prompt),
      imageEncoder: new ImageEncoder(engine, vision_encoder, projector, imageSize, numImageTokens),
      decoder: new Decoder(engine, /** @type {any} */ (decoderGraphs), manifest.decoder, cacheType, second_pass),
      embedding: await TokenEmbedding.open(files, embed_tokens, manifest.decoder),
      readPixels: platform.readPixels,
    };
    components.decoder.newCache().dispose(); // A type that the client lacks is refused here.
    files.release();
    const loadMilliseconds = performance.now() - began;
    const { device } = engine;
    return new FastVLM(components, { manifest, variant, imageSize, device, deviceReason, loadMilliseconds });
  } catch (error) {
    await Promise.all(Object.values(open).map((graph) => graph.close()));
    throw error;
  }
}

/**
 * Why no variant is for WebGPU; empty where one is. `web` is not: WebGPU leaves its products to the
 * processor.
 *
 * @param {Manifest} manifest
 * @param {string} [asked] the only variant that the caller takes
 */
export function lackOfVariant(manifest, asked) {
  const names = asked ? [asked] : Object.keys(manifest.variants);
  if (names.some((name) => PREFERRED.webgpu.includes(name))) return "";
  return `${names.join(", ")} is not made for WebGPU; add int4 with \`fastvlm-onnx export ... --add --precision int4\``;
}

/**
 * @param {PackageFiles} files
 * @param {Device} device
 * @param {string} [asked]
 * @throws {FastVLMError} the package lacks the variant, or has none that this client runs.
 */
function chooseVariant({ manifest, where }, device, asked) {
  const there = Object.keys(manifest.variants);
  const chosen = asked ?? PREFERRED[device].find((name) => there.includes(name));
  if (chosen !== undefined && there.includes(chosen)) return chosen;
  const found = `${where}: has the variants ${there.join(", ")}`;
  const expected = asked ?? `one of ${PREFERRED[device].join(", ")}`;
  throw new FastVLMError(
    "input",
    `${found}, expected ${expected}; add it with \`fastvlm-onnx export ... --add --precision ${asked ?? "int8"}\`.`,
  );
}

/**
 * @param {PackageFiles} files
 * @param {string} variant
 * @param {number} [asked]
 * @throws {FastVLMError} the variant lacks the image size.
 */
function chooseImageSize({ manifest, where }, variant, asked) {
  const sizes = manifest.variants[variant].vision_encoder;
  const chosen = asked ?? manifest.image.default_size;
  if (Object.hasOwn(sizes, chosen)) return chosen;
  const found = `${where}: was exported for ${Object.keys(sizes).join(", ")} pixels, expected ${chosen}`;
  throw new FastVLMError(
    "input",
    `${found}; add it with \`fastvlm-onnx export ... --add --image-size ${chosen}\`.`,
  );
}

/**
 * The files of a variant on a device.
 *
 * @param {Manifest} manifest
 * @param {string} variant
 * @param {number} imageSize
 * @param {Device} device
 */
function variantFiles(manifest, variant, imageSize, device) {
  const chosen = manifest.variants[variant];
  // WebAssembly has no fast kernel for the screen's weights.
  const graphs = graphFiles(chosen, imageSize, device === "cpu");
  const weights = new Set(Object.values(graphs).flatMap((name) => manifest.graphs[name].weights));
  const scale = scaleFile(chosen.embed_tokens);
  const embeddings = [chosen.embed_tokens, ...(Object.hasOwn(manifest.files, scale) ? [scale] : [])];
  const all = new Set([...Object.values(graphs), ...weights, ...embeddings, TOKENIZER_FILE]);
  const totalBytes = [...all].reduce((sum, name) => sum + manifest.files[name].bytes, 0);
  return { graphs, weights, embeddings, totalBytes };
}

/** @param {number} layers */
function presentNames(layers) {
  return Array.from({ length: layers }, (_, i) => [`present.${i}.key`, `present.${i}.value`]).flat();
}
