// The manifest `fastvlm.json` of a package, as docs/format.md describes it.

import { FastVLMError, inOneLine } from "./errors.js";

export const MANIFEST_FILE = "fastvlm.json";
export const TOKENIZER_FILE = "tokenizer.json";
const FORMAT_VERSION = 2;
const ADVICE = "export the package again, or install a fastvlm-onnx that knows its format";

/**
 * @typedef {object} Variant
 * @property {Record<string, string>} vision_encoder graph file by image size in pixels
 * @property {string} projector graph file
 * @property {string} prefill graph file; the decoder's own where it runs the prompt
 * @property {string} decoder graph file
 * @property {string} embed_tokens file of the token embeddings
 * @property {SplitDecoder|null} [split_decoder] the decoder in parts
 * @property {SecondPass|null} [second_pass] when `prefill` runs the last positions of an answer again
 *
 * @typedef {object} SecondPass
 * @property {number} margin `prefill` decides where the largest logit leads the second by less
 * @property {number} positions the most positions that it runs again, the newest included
 *
 * @typedef {object} SplitDecoder
 * @property {string} decoder_layers graph file: embeddings to hidden states
 * @property {string} lm_head graph file: hidden states to logits
 * @property {string} lm_head_screen graph file: hidden states to the likeliest tokens
 *
 * @typedef {object} Graph
 * @property {string[]} weights files with the graph's weights
 * @property {string|null} [cache_dtype] number format of keys and values
 * @property {boolean} int8_products the graph multiplies uint8 activations by int8 weights
 *
 * @typedef {object} DecoderFormat
 * @property {number} hidden_size
 * @property {number} num_hidden_layers
 * @property {number} num_key_value_heads
 * @property {number} head_dim
 * @property {number} vocab_size
 * @property {number} context_length the largest number of positions, image tokens included
 * @property {number[]} eos_token_ids
 * @property {string} operators `microsoft` or `standard`
 *
 * @typedef {object} PromptFormat
 * @property {string} system
 * @property {string} user
 * @property {string} after_image
 * @property {string} end_of_turn
 * @property {string} assistant
 *
 * @typedef {object} Manifest
 * @property {number} format_version
 * @property {{name: string, exporter: string, parameters: number}} source
 * @property {{default_size: number, patch_size: number, padding: string, resample: string,
 *   rescale: string}} image
 * @property {PromptFormat} prompt
 * @property {DecoderFormat} decoder
 * @property {Record<string, Variant>} variants
 * @property {Record<string, Graph>} graphs
 * @property {Record<string, {bytes: number, sha256: string}>} files
 */

/**
 * Parse a manifest and check every key that this client reads.
 *
 * @param {string} text
 * @param {string} where the package's folder or address, for messages
 * @returns {Manifest}
 * @throws {FastVLMError} the text is no manifest of format 2.
 */
export function parseManifest(text, where) {
  /** @type {any} */
  let content;
  try {
    content = JSON.parse(text);
  } catch (error) {
    throw fault(where, `${MANIFEST_FILE} is not JSON (${inOneLine(error)})`, ADVICE);
  }
  const version = content?.format_version;
  if (version !== FORMAT_VERSION) {
    const found = `the package has format ${JSON.stringify(version)}`;
    throw fault(where, `${found}, expected ${FORMAT_VERSION}`, ADVICE);
  }
  const misfit = firstMisfit(content, MANIFEST, "");
  if (misfit) throw fault(where, `${MANIFEST_FILE}: ${misfit}`, ADVICE);
  for (const [name, variant] of Object.entries(content.variants)) {
    const secondPass = variant.second_pass ?? { margin: 0, positions: 0 };
    const found = firstMisfit(secondPass, SECOND_PASS, `variants.${name}.second_pass`);
    if (found) throw fault(where, `${MANIFEST_FILE}: ${found}`, ADVICE);
  }
  const { padding, resample, rescale } = content.image;
  if (padding !== "pad" || resample !== "bicubic" || rescale !== "1/255") {
    const found = `image has ${padding}, ${resample}, ${rescale}`;
    throw fault(where, `${MANIFEST_FILE}: ${found}, expected pad, bicubic, 1/255`, ADVICE);
  }
  checkNames(content, where);
  return content;
}

/**
 * The graph files that a variant runs at one image size, by the graph's name.
 *
 * @param {Variant} variant
 * @param {number} imageSize side of the square input in pixels
 * @param {boolean} isScreened take the screen of lm_head too, where the variant has the decoder in
 *   parts
 * @returns {Record<string, string>}
 */
export function graphFiles(variant, imageSize, isScreened) {
  const { split_decoder: parts, prefill, decoder } = variant;
  const vision_encoder = variant.vision_encoder[imageSize];
  /** @type {Record<string, string>} */
  const graphs = { vision_encoder, projector: variant.projector };
  // The parts let `prefill` run the whole prompt.
  graphs.decoder = parts ? parts.decoder_layers : decoder;
  if (parts) graphs.lm_head = parts.lm_head;
  if (parts && isScreened) graphs.lm_head_screen = parts.lm_head_screen;
  if (prefill !== decoder) graphs.prefill = prefill;
  return graphs;
}

/**
 * The file of an int8 embedding's scales.
 *
 * @param {string} embedTokens
 */
export const scaleFile = (embedTokens) => embedTokens.replace(/\.npy$/, ".scale.npy");

// --- checks --------------------------------------------------------------------------------------

/** @typedef {"text" | "number" | "count" | "counts" | "texts" | "flag"} Kind */
/** A key of an object with the kind of its value; `each` stands for every key. @typedef {{[key: string]: Kind | Shape}} Shape */

/** @type {Shape} */
const VARIANT = {
  vision_encoder: { each: "text" },
  projector: "text",
  prefill: "text",
  decoder: "text",
  embed_tokens: "text",
};

/** @type {Shape} */
const SECOND_PASS = { margin: "number", positions: "count" };

/** @type {Shape} */
const MANIFEST = {
  source: { name: "text", exporter: "text", parameters: "count" },
  image: {
    default_size: "count",
    patch_size: "count",
    padding: "text",
    resample: "text",
    rescale: "text",
  },
  prompt: { system: "text", user: "text", after_image: "text", end_of_turn: "text", assistant: "text" },
  decoder: {
    hidden_size: "count",
    num_hidden_layers: "count",
    num_key_value_heads: "count",
    head_dim: "count",
    vocab_size: "count",
    context_length: "count",
    eos_token_ids: "counts",
    operators: "text",
  },
  variants: { each: VARIANT },
  graphs: { each: { weights: "texts", int8_products: "flag" } },
  files: { each: { bytes: "count", sha256: "text" } },
};

/** @type {Record<Kind, [string, (value: unknown) => boolean]>} */
const KINDS = {
  text: ["a text", (value) => typeof value === "string"],
  flag: ["true or false", (value) => typeof value === "boolean"],
  number: ["a number", (value) => typeof value === "number"],
  count: ["an integer of 0 or more", isCount],
  counts: ["a list of integers", (value) => Array.isArray(value) && value.every(isCount)],
  texts: [
    "a list of texts",
    (value) => Array.isArray(value) && value.every((item) => typeof item === "string"),
  ],
};

/** @param {unknown} value */
function isCount(value) {
  return Number.isSafeInteger(value) && /** @type {number} */ (value) >= 0;
}

/** @param {unknown} value @returns {value is Record<string, unknown>} */
function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * @param {unknown} value
 * @param {Shape | Kind} expected
 * @param {string} where
 * @returns {string} the first value that is not as expected; empty where all are
 */
function firstMisfit(value, expected, where) {
  if (typeof expected === "string") {
    const [words, isGood] = KINDS[expected];
    if (value === undefined) return `${where} is missing`;
    return isGood(value) ? "" : `${where} is ${JSON.stringify(value)?.slice(0, 60)}, expected ${words}`;
  }
  if (!isObject(value)) return `${where} is ${value === undefined ? "missing" : "no object"}`;
  const keys = "each" in expected ? Object.keys(value) : Object.keys(expected);
  for (const key of keys) {
    const shape = /** @type {Shape | Kind} */ (expected["each" in expected ? "each" : key]);
    const misfit = firstMisfit(value[key], shape, where ? `${where}.${key}` : key);
    if (misfit) return misfit;
  }
  return "";
}

/**
 * Refuse names that leave the folder, and files that are named but not listed.
 *
 * @param {Manifest} manifest
 * @param {string} where
 */
function checkNames(manifest, where) {
  const graphsAndEmbeddings = Object.values(manifest.variants).flatMap((variant) => [
    ...Object.values(variant.vision_encoder),
    variant.projector,
    variant.prefill,
    variant.decoder,
    variant.embed_tokens,
    ...Object.values(variant.split_decoder ?? {}),
  ]);
  const weights = Object.values(manifest.graphs).flatMap((graph) => graph.weights);
  for (const name of [...Object.keys(manifest.files), ...graphsAndEmbeddings, ...weights, TOKENIZER_FILE]) {
    if (typeof name !== "string" || /[/\\:]|^\.*$/.test(name)) {
      throw fault(where, `${MANIFEST_FILE}: ${JSON.stringify(name)} is no file name`, ADVICE);
    }
    if (!Object.hasOwn(manifest.files, name)) {
      throw fault(where, `${MANIFEST_FILE}: names ${name}, which files does not list`, ADVICE);
    }
  }
  for (const name of graphsAndEmbeddings) {
    if (!name.endsWith(".npy") && !Object.hasOwn(manifest.graphs, name)) {
      throw fault(where, `${MANIFEST_FILE}: names ${name}, which graphs does not list`, ADVICE);
    }
  }
}

/** @param {string} where @param {string} found @param {string} advice */
function fault(where, found, advice) {
  return new FastVLMError("package", `${where}: ${found}; ${advice}.`);
}
