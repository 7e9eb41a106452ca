// A package at an address: files are downloaded, compared with the manifest, and kept in the
// browser's cache. Only a whole file that has the manifest's SHA-256 is ever kept or used.

import { FastVLMError, inOneLine } from "../errors.js";
import { MANIFEST_FILE, parseManifest } from "../manifest.js";
import { checkEntry } from "./files.js";

/** @import { Manifest } from "../manifest.js" */
/** @import { OnProgress, OpenFile, PackageFiles } from "./files.js" */

const CACHE = "fastvlm-onnx";

/** @implements {PackageFiles} */
export class UrlFiles {
  #base;
  #signal;
  #onProgress;
  /** @type {Cache|null} */
  #cache;
  /** @type {Map<string, Promise<Uint8Array<ArrayBuffer>>>} */
  #reading = new Map();
  /** Bytes that came, by file. @type {Map<string, number>} */
  #loaded = new Map();

  /**
   * @param {URL} base
   * @param {Manifest} manifest
   * @param {Cache|null} cache
   * @param {{signal?: AbortSignal, onProgress?: OnProgress}} options
   */
  constructor(base, manifest, cache, { signal, onProgress }) {
    this.where = base.href;
    this.manifest = manifest;
    /** @type {PackageFiles["path"]} */
    this.path = null;
    /** Bytes of all files that will be read, for the progress. */
    this.totalBytes = 0;
    this.#base = base;
    this.#cache = cache;
    this.#signal = signal;
    this.#onProgress = onProgress;
  }

  /**
   * @param {URL} address of the package's folder
   * @param {{signal?: AbortSignal, onProgress?: OnProgress, cache?: boolean}} options
   * @throws {FastVLMError} there is no package at the address.
   */
  static async open(address, options) {
    const base = new URL(address);
    base.search = base.hash = "";
    if (!base.pathname.endsWith("/")) base.pathname += "/";
    if (!globalThis.crypto?.subtle) {
      throw new FastVLMError(
        "package",
        `${base.href}: a browser checks files at https addresses and at localhost only; ` +
          "serve the page at one of them.",
      );
    }
    const response = await request(new URL(MANIFEST_FILE, base), options.signal, { cache: "no-cache" });
    const text = await response.text().catch((error) => {
      options.signal?.throwIfAborted();
      throw broken(base, inOneLine(error));
    });
    const cache = options.cache === false ? null : await openCache();
    return new UrlFiles(base, parseManifest(text, base.href), cache, options);
  }

  /** @param {string} name @returns {Promise<Uint8Array<ArrayBuffer>>} */
  read(name) {
    let reading = this.#reading.get(name);
    if (!reading) {
      reading = this.#read(name);
      this.#reading.set(name, reading);
    }
    return reading;
  }

  /** @param {string} name @returns {Promise<OpenFile>} */
  async open(name) {
    const content = await this.read(name);
    return {
      size: content.length,
      read: (begin, end) => content.subarray(begin, end),
      close: () => {},
    };
  }

  /** @param {readonly string[]} names */
  async check(names) {
    await Promise.all(names.map((name) => this.read(name)));
  }

  release() {
    this.#reading.clear();
  }

  /** @param {string} name */
  async #read(name) {
    const url = new URL(name, this.#base);
    const entry = this.manifest.files[name];
    const kept = await this.#readKept(url, entry);
    if (kept) {
      this.#progress(name, entry.bytes);
      return kept;
    }
    const response = await request(url, this.#signal, {});
    const content = await bodyOf(response, this.#signal, entry.bytes, (bytes) => this.#progress(name, bytes));
    checkEntry(this.where, name, entry, content.length, await sha256Of(content));
    // A full disk costs a download the next time, and nothing now.
    await this.#cache?.put(url, new Response(content)).catch(() => undefined);
    return content;
  }

  /** @param {URL} url @param {{bytes: number, sha256: string}} entry */
  async #readKept(url, entry) {
    const kept = await this.#cache?.match(url).catch(() => undefined);
    if (!kept) return null;
    const content = new Uint8Array(await kept.arrayBuffer());
    const isWhole = content.length === entry.bytes && (await sha256Of(content)) === entry.sha256;
    if (isWhole) return content;
    await this.#cache?.delete(url).catch(() => undefined);
    return null;
  }

  /** @param {string} file @param {number} bytes of the file so far */
  #progress(file, bytes) {
    this.#loaded.set(file, bytes);
    const loadedBytes = [...this.#loaded.values()].reduce((sum, one) => sum + one, 0);
    this.#onProgress?.({ file, loadedBytes, totalBytes: this.totalBytes });
  }
}

/** Forget every file that was kept, of every package. */
export async function clearCache() {
  await globalThis.caches?.delete(CACHE);
}

async function openCache() {
  try {
    return (await globalThis.caches?.open(CACHE)) ?? null;
  } catch {
    return null; // A browser may forbid it, in a private window for example.
  }
}

/** @param {URL} url @param {AbortSignal|undefined} signal @param {RequestInit} options */
async function request(url, signal, options) {
  let response;
  try {
    response = await fetch(url, { ...options, signal });
  } catch (error) {
    signal?.throwIfAborted();
    throw broken(url, inOneLine(error));
  }
  if (response.ok) return response;
  const found = `the server answered ${response.status} for ${url.href}`;
  throw new FastVLMError("download", `${found}; expected a file of a package: check the address.`);
}

/**
 * @param {Response} response
 * @param {AbortSignal|undefined} signal
 * @param {number} expected bytes
 * @param {(bytes: number) => void} onBytes called with the bytes so far
 */
async function bodyOf(response, signal, expected, onBytes) {
  const content = new Uint8Array(expected);
  let size = 0;
  const url = new URL(response.url);
  try {
    for await (const part of partsOf(response)) {
      size += part.length;
      // A longer file is no file of the package, however much longer it is.
      if (size > expected) break;
      content.set(part, size - part.length);
      onBytes(size);
    }
  } catch (error) {
    signal?.throwIfAborted();
    throw broken(url, inOneLine(error));
  }
  if (size !== expected) throw broken(url, `${size} bytes came, expected ${expected}`);
  return content;
}

/** @param {Response} response */
async function* partsOf(response) {
  // Not every browser iterates over a stream.
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

/** @param {URL} url @param {string} reason */
function broken(url, reason) {
  const found = `${url.href} did not come whole (${reason})`;
  return new FastVLMError("download", `${found}; check the connection and load the model again.`);
}

/** @param {Uint8Array<ArrayBuffer>} content */
async function sha256Of(content) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
