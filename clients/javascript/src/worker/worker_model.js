// The page's side of `loadInWorker`: a model that answers in a worker, so that the page stays alive.

import { finalGeneration } from "../answer.js";
import { FastVLMError } from "../errors.js";
import { ImageFeatures } from "../image/image_encoder.js";
import { imagesOf } from "../question.js";

/** @import { Generation, Piece } from "../answer.js" */
/** @import { LoadOptions } from "../load.js" */
/** @import { Description, ImageInput, ImageSource } from "../model.js" */
/** @import { GenerationOptions } from "../options.js" */
/** @import { Reply, SentImage } from "./messages.js" */

/**
 * Open a package in a worker.
 *
 * @param {string | URL} address of the package's folder
 * @param {LoadOptions} [options]
 * @returns {Promise<WorkerModel>}
 * @throws {FastVLMError} as `load`.
 */
export async function loadInWorker(address, options = {}) {
  const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  const calls = new Calls(worker);
  const { signal, onProgress, ...others } = options;
  const absolute = new URL(address, document.baseURI).href;
  try {
    let description = null;
    for await (const reply of calls.call({ call: "load", address: absolute, options: others }, signal)) {
      if (reply.progress) onProgress?.(reply.progress);
      else description = reply.value;
    }
    return new WorkerModel(calls, /** @type {Description} */ (description));
  } catch (error) {
    worker.terminate();
    throw error;
  }
}

/** A model in a worker; it is asked as a `FastVLM` is. */
export class WorkerModel {
  #calls;
  #chats = 0;

  /** @param {Calls} calls @param {Description} description */
  constructor(calls, description) {
    this.#calls = calls;
    this.manifest = description.manifest;
    this.variant = description.variant;
    this.imageSize = description.imageSize;
    this.device = description.device;
    this.deviceReason = description.deviceReason;
    this.loadMilliseconds = description.loadMilliseconds;
  }

  /**
   * @param {ImageSource} image
   * @param {{orient?: boolean}} [options]
   * @returns {Promise<ImageFeatures>} as `FastVLM.encodeImage`
   */
  async encodeImage(image, options = {}) {
    const sent = await sendable(image);
    return new ImageFeatures(await this.#calls.result({ call: "encode", image: sent, options }));
  }

  /**
   * @param {ImageInput | readonly ImageInput[] | null} image
   * @param {string} prompt
   * @param {GenerationOptions} [options]
   * @returns {Promise<Generation>} as `FastVLM.generate`
   */
  async generate(image, prompt, options) {
    return finalGeneration(this.stream(image, prompt, options));
  }

  /**
   * @param {ImageInput | readonly ImageInput[] | null} image
   * @param {string} prompt
   * @param {GenerationOptions} [options]
   * @returns {AsyncGenerator<Piece, void, void>} as `FastVLM.stream`
   */
  stream(image, prompt, options) {
    return this.#calls.pieces(null, image, prompt, options);
  }

  /** Begin a conversation; it is asked as a `Chat` is. @returns {Promise<WorkerChat>} */
  async chat() {
    const chat = ++this.#chats;
    await this.#calls.result({ call: "chat", chat });
    return new WorkerChat(this.#calls, chat);
  }

  /** End the worker and every call that runs in it. */
  close() {
    this.#calls.close();
  }
}

/** A conversation in a worker. */
class WorkerChat {
  #calls;
  #id;

  /** @param {Calls} calls @param {number} id */
  constructor(calls, id) {
    this.#calls = calls;
    this.#id = id;
  }

  /**
   * @param {string} prompt
   * @param {ImageInput | readonly ImageInput[] | null} [image]
   * @param {GenerationOptions} [options]
   * @returns {Promise<Generation>} as `Chat.ask`
   */
  async ask(prompt, image, options) {
    return finalGeneration(this.stream(prompt, image, options));
  }

  /**
   * @param {string} prompt
   * @param {ImageInput | readonly ImageInput[] | null} [image]
   * @param {GenerationOptions} [options]
   * @returns {AsyncGenerator<Piece, void, void>} as `Chat.stream`
   */
  stream(prompt, image = null, options = {}) {
    return this.#calls.pieces(this.#id, image, prompt, options);
  }

  /**
   * @param {readonly {prompt: string, image?: ImageInput | readonly ImageInput[] | null,
   *   answer: string}[]} turns as `Chat.restore`
   */
  async restore(turns) {
    const sentTurns = await Promise.all(
      turns.map(async ({ image = null, ...turn }) => ({
        ...turn,
        image: await Promise.all(imagesOf(image).map(sent)),
      })),
    );
    await this.#calls.result({ call: "restore", chat: this.#id, turns: sentTurns });
  }

  /** Forget all turns. */
  async reset() {
    await this.#calls.result({ call: "reset", chat: this.#id });
  }
}

/** Calls to a worker that run. */
class Calls {
  #worker;
  #ids = 0;
  /** @type {Map<number, (reply: Reply) => void>} */
  #listeners = new Map();
  #isClosed = false;

  /** @param {Worker} worker */
  constructor(worker) {
    this.#worker = worker;
    worker.onmessage = ({ data }) => this.#listeners.get(data.id)?.(data);
    worker.onerror = (event) => this.#fail(`the worker failed (${event.message ?? "its script cannot be loaded"})`);
  }

  /**
   * @param {object} request without its id
   * @returns {Promise<any>}
   */
  async result(request) {
    let value;
    for await (const reply of this.call(request)) value = reply.value;
    return value;
  }

  /**
   * @param {number|null} chat
   * @param {ImageInput | readonly ImageInput[] | null} image
   * @param {string} prompt
   * @param {GenerationOptions} [options]
   * @returns {AsyncGenerator<Piece, void, void>}
   */
  async *pieces(chat, image, prompt, options = {}) {
    const { signal, ...others } = options;
    signal?.throwIfAborted();
    const images = await Promise.all(imagesOf(image).map(sent));
    const request = { call: "stream", chat, image: images.length > 0 ? images : null, prompt, options: others };
    for await (const { piece } of this.call(request, signal)) if (piece) yield piece;
  }

  /**
   * @param {object} request without its id
   * @param {AbortSignal} [signal]
   * @returns {AsyncGenerator<Reply, void, void>} replies until the call has ended
   */
  async *call(request, signal) {
    if (this.#isClosed) throw new FastVLMError("input", "the model is closed; load it again.");
    signal?.throwIfAborted();
    const id = ++this.#ids;
    /** @type {Reply[]} */
    const replies = [];
    let wake = () => {};
    this.#listeners.set(id, (reply) => {
      replies.push(reply);
      wake();
    });
    const next = async () => {
      while (replies.length === 0) {
        await new Promise((/** @type {(value: void) => void} */ resolve) => (wake = resolve));
      }
      return /** @type {Reply} */ (replies.shift());
    };
    const abort = () => this.#worker.postMessage({ id, call: "abort" });
    signal?.addEventListener("abort", abort);
    let hasEnded = false;
    try {
      this.#worker.postMessage({ id, ...request });
      while (!hasEnded) {
        const reply = await next();
        hasEnded = isLast(reply);
        if (reply.error) throw thrown(reply.error, signal);
        yield reply;
      }
    } finally {
      signal?.removeEventListener("abort", abort);
      // Where the caller has left, the next call must find the conversation at rest.
      if (!hasEnded) abort();
      while (!hasEnded) hasEnded = isLast(await next());
      this.#listeners.delete(id);
    }
  }

  close() {
    this.#isClosed = true;
    this.#worker.terminate();
    this.#fail("the model was closed while it answered");
  }

  /** @param {string} message */
  #fail(message) {
    const error = { name: "FastVLMError", message: `${message}; load the model again.`, code: /** @type {const} */ ("engine") };
    for (const [id, listener] of this.#listeners) listener({ id, error });
  }
}

/** @param {Reply} reply */
const isLast = (reply) => !reply.progress && !reply.piece;

/** @param {NonNullable<Reply["error"]>} error @param {AbortSignal} [signal] */
function thrown({ name, message, code }, signal) {
  if (name === "AbortError" && signal?.aborted) return signal.reason;
  if (code) return new FastVLMError(code, message);
  return Object.assign(new Error(message), { name });
}

/** @param {ImageInput} image @returns {Promise<SentImage>} */
async function sent(image) {
  return image instanceof ImageFeatures ? { features: image.data } : { source: await sendable(image) };
}

/** An image that a worker can get: elements stay with their page. @param {any} image */
async function sendable(image) {
  const isElement = image instanceof Element || image instanceof OffscreenCanvas;
  if (!isElement) return image;
  try {
    return await createImageBitmap(/** @type {any} */ (image), { colorSpaceConversion: "none" });
  } catch (error) {
    throw new FastVLMError(
      "input",
      `the <${/** @type {any} */ (image).localName ?? "canvas"}> holds no image (${error}); wait until it is loaded.`,
    );
  }
}
