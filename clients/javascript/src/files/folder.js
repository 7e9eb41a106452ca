// A package in a folder, for Node.

import { createHash } from "node:crypto";
import { closeSync, createReadStream, openSync, readSync } from "node:fs";
import { readFile, stat } from "node:fs/promises";
import path from "node:path";

import { FastVLMError, inOneLine } from "../errors.js";
import { MANIFEST_FILE, parseManifest } from "../manifest.js";
import { checkEntry } from "./files.js";

/** @import { Manifest } from "../manifest.js" */
/** @import { OpenFile, PackageFiles } from "./files.js" */

/** @implements {PackageFiles} */
export class FolderFiles {
  /** @type {AbortSignal|undefined} */
  #signal;

  /**
   * @param {string} folder
   * @param {Manifest} manifest
   * @param {AbortSignal} [signal]
   */
  constructor(folder, manifest, signal) {
    this.where = folder;
    this.manifest = manifest;
    this.#signal = signal;
  }

  /**
   * @param {string} folder
   * @param {AbortSignal} [signal]
   * @throws {FastVLMError} the folder is no package.
   */
  static async open(folder, signal) {
    let text;
    try {
      text = await readFile(path.join(folder, MANIFEST_FILE), "utf-8");
    } catch (error) {
      throw new FastVLMError(
        "package",
        `${folder}: has no ${MANIFEST_FILE} that can be read (${inOneLine(error)}); ` +
          "expected a folder that `fastvlm-onnx export` wrote.",
      );
    }
    return new FolderFiles(folder, parseManifest(text, folder), signal);
  }

  /** @param {string} name */
  path(name) {
    return path.join(this.where, name);
  }

  /** @param {string} name */
  async read(name) {
    const content = await this.#reading(name, () => readFile(this.path(name), { signal: this.#signal }));
    const sha256 = createHash("sha256").update(content).digest("hex");
    checkEntry(this.where, name, this.manifest.files[name], content.length, sha256);
    return content;
  }

  /** @param {string} name @returns {Promise<OpenFile>} */
  async open(name) {
    const { size } = await this.#reading(name, () => stat(this.path(name)));
    const file = openSync(this.path(name), "r");
    return {
      size,
      read: (begin, end) => {
        const bytes = new Uint8Array(end - begin);
        readSync(file, bytes, 0, bytes.length, begin);
        return bytes;
      },
      close: () => closeSync(file),
    };
  }

  /** @param {readonly string[]} names */
  async check(names) {
    // All sizes come first: a cut file is found without reading the others.
    for (const name of names) {
      const { size } = await this.#reading(name, () => stat(this.path(name)));
      checkEntry(this.where, name, this.manifest.files[name], size, this.manifest.files[name].sha256);
    }
    for (const name of names) {
      const sha256 = await this.#reading(name, () => this.#hash(name));
      checkEntry(this.where, name, this.manifest.files[name], this.manifest.files[name].bytes, sha256);
    }
  }

  release() {}

  /** @param {string} name */
  async #hash(name) {
    const hash = createHash("sha256");
    const stream = createReadStream(this.path(name), { highWaterMark: 1 << 20, signal: this.#signal });
    for await (const part of stream) hash.update(part);
    return hash.digest("hex");
  }

  /**
   * @template T
   * @param {string} name
   * @param {() => Promise<T>} read
   */
  async #reading(name, read) {
    this.#signal?.throwIfAborted();
    try {
      return await read();
    } catch (error) {
      this.#signal?.throwIfAborted();
      throw new FastVLMError(
        "package",
        `${this.where}: ${name} cannot be read (${inOneLine(error)}); copy or export the package again.`,
      );
    }
  }
}
