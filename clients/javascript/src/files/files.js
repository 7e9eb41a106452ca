// What the files of a package look like to the rest of the client, wherever they are.

import { FastVLMError } from "../errors.js";

/** @import { Manifest } from "../manifest.js" */

/**
 * @typedef {object} PackageFiles
 * @property {string} where the package's folder or address, for messages
 * @property {Manifest} manifest
 * @property {(name: string) => Promise<Uint8Array>} read a whole file; the same array each time
 *   until `release`
 * @property {(name: string) => Promise<OpenFile>} open a file of which parts are read
 * @property {((name: string) => string) | null} path the file's path, where ONNX Runtime can open
 *   it; null where it cannot
 * @property {(names: readonly string[]) => Promise<void>} check compare whole files with the manifest
 * @property {() => void} release forget what `read` returned
 *
 * @typedef {object} OpenFile
 * @property {number} size bytes
 * @property {(begin: number, end: number) => Uint8Array} read
 * @property {() => void} close
 *
 * @typedef {object} Progress
 * @property {string} file the file of which bytes came
 * @property {number} loadedBytes bytes of all files so far
 * @property {number} totalBytes bytes of all files that the variant needs
 *
 * @typedef {(progress: Progress) => void} OnProgress
 */

/**
 * @param {string} where
 * @param {string} name
 * @param {{bytes: number, sha256: string}} entry the manifest's
 * @param {number} bytes
 * @param {string} sha256
 * @throws {FastVLMError} the file is not the manifest's.
 */
export function checkEntry(where, name, entry, bytes, sha256) {
  if (bytes !== entry.bytes) {
    const found = `${name} has ${bytes} bytes, expected ${entry.bytes}`;
    throw new FastVLMError("package", `${where}: ${found}; copy or export the package again.`);
  }
  if (sha256 !== entry.sha256) {
    const found = `${name} is not the file that was exported (its SHA-256 differs)`;
    throw new FastVLMError("package", `${where}: ${found}; copy or export the package again.`);
  }
}
