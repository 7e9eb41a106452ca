// fastvlm-onnx for Node.

import { fileURLToPath } from "node:url";

import { Tokenizer } from "@huggingface/tokenizers";

import { openEngine } from "./engine/node.js";
import { FastVLMError } from "./errors.js";
import { FolderFiles } from "./files/folder.js";
import { readPixels } from "./image/read_node.js";
import { checkLoadOptions, openModel } from "./load.js";

/** @import { LoadOptions } from "./load.js" */

export * from "./exports.js";

/**
 * Open a package.
 *
 * @param {string | URL} folder
 * @param {LoadOptions} [options]
 * @returns {Promise<import("./model.js").FastVLM>}
 * @throws {FastVLMError} the package, the variant or the engine cannot be used.
 */
export async function load(folder, options = {}) {
  const began = performance.now();
  checkLoadOptions(options);
  const files = await FolderFiles.open(pathOf(folder), options.signal);
  const engine = await openEngine(options);
  return openModel({ Tokenizer, readPixels }, files, engine, options, { began, deviceReason: "" });
}

/** @param {string | URL} folder */
function pathOf(folder) {
  const text = String(folder);
  if (text.startsWith("file:")) return fileURLToPath(text);
  if (!/^https?:/.test(text)) return text;
  // onnxruntime-node takes int8 graphs from files only.
  throw new FastVLMError(
    "input",
    `${text}: an address, expected a folder in Node; download it first, for example with \`hf download\`.`,
  );
}
