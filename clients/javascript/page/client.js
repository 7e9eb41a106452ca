// Answers from the package beside the page, computed in a worker of this browser. It takes the place
// of the server's page/client.js; only its public members are used by the page.

import { loadInWorker } from "../fastvlm/index.web.js";
import { AnswerError } from "./errors.js";
import { isolatePage } from "./isolate.js";

const MEGABYTE = 1e6;

export class Client {
  #base;
  #opened = null; // promise of a worker's model
  #chat = null;
  #asked = []; // {text, picture, answer} of the turns that the chat has
  #features = new WeakMap(); // Picture -> promise of its features

  privacy = "Pictures and questions stay in this browser: the model runs on this machine.";
  hasKeys = false;
  formsAnswers = false;
  key = "";

  /** @param {string} base address of the page, which is in the package's folder */
  constructor(base) {
    this.#base = new URL(".", base).href;
    /** What the page shows of the model: {id, ...}; null before it is ready. */
    this.model = null;
  }

  /**
   * Load the model.
   *
   * @yields {{state: "loading"|"failed"|"ready", message: string, short?: string}} as bytes come
   */
  async *loadStatus() {
    await isolatePage();
    const progress = [];
    let wake = () => {};
    const onProgress = (one) => {
      progress.push(one);
      wake();
    };
    const opening = this.#open(onProgress).finally(() => wake());
    let hasEnded = false;
    opening.catch(() => undefined).finally(() => (hasEnded = true));
    while (!hasEnded) {
      const { loadedBytes = 0, totalBytes = 0 } = progress.splice(0).at(-1) ?? {};
      if (totalBytes > 0) yield loadingStatus(loadedBytes, totalBytes);
      if (progress.length === 0) {
        await Promise.race([new Promise((resolve) => (wake = resolve)), opening.catch(() => undefined)]);
      }
    }
    try {
      const model = await opening;
      this.model = facts(model);
      const device = model.device === "webgpu" ? "WebGPU" : "WebAssembly";
      yield { state: "ready", message: `${this.model.id}, ${model.variant}, ${device}. ${model.deviceReason}`, short: this.model.id };
    } catch (error) {
      yield { state: "failed", message: error.message };
    }
  }

  /**
   * Encode a picture before a question about it comes.
   *
   * @param {import("../../../fastvlm_onnx/server/page/picture.js").Picture} picture
   * @returns {Promise<void>} the same promise for the same picture
   */
  async see(picture) {
    await this.#encoded(picture);
  }

  /**
   * Answer the last turn.
   *
   * @param {{turns: {role: string, text: string, picture?: object}[], maxTokens: number,
   *   temperature: number}} request
   * @param {AbortSignal} signal stops the answer
   * @yields {{text: string}|{reason: string, usage: object, timings: object}} the second kind is last.
   * @throws {AnswerError}
   */
  async *answer(request, signal) {
    const asked = pairs(request.turns);
    const question = asked.pop();
    try {
      const chat = await this.#chatAfter(asked);
      const image = question.picture ? await this.#encoded(question.picture) : null;
      const options = { maxNewTokens: request.maxTokens, temperature: request.temperature, signal };
      let answer = "";
      try {
        for await (const { text, generation } of chat.stream(question.text, image, options)) {
          answer += text;
          if (text) yield { text };
          if (generation) yield ended(generation);
        }
      } finally {
        this.#asked = [...asked, { ...question, answer }];
      }
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new AnswerError(error.code === "engine" ? "failed" : "refused", error.message);
    }
  }

  async #open(onProgress) {
    const wanted = new URLSearchParams(location.search);
    const options = { onProgress };
    for (const name of ["variant", "device"]) if (wanted.has(name)) options[name] = wanted.get(name);
    for (const name of ["threads", "imageSize"]) if (wanted.has(name)) options[name] = Number(wanted.get(name));
    this.#opened = loadInWorker(this.#base, options);
    return this.#opened;
  }

  /** The conversation after these turns; a new one where the present one has others. */
  async #chatAfter(turns) {
    const model = await this.#opened;
    this.#chat ??= await model.chat();
    const isSame = turns.length === this.#asked.length && turns.every((turn, i) => isEqual(turn, this.#asked[i]));
    if (!isSame) {
      this.#asked = [];
      const restored = turns.map(async ({ text, picture, answer }) =>
        ({ prompt: text, image: picture ? await this.#encoded(picture) : null, answer }));
      await this.#chat.restore(await Promise.all(restored));
      this.#asked = turns;
    }
    return this.#chat;
  }

  #encoded(picture) {
    let features = this.#features.get(picture);
    if (!features) {
      features = this.#opened.then((model) => model.encodeImage(picture.blob));
      this.#features.set(picture, features);
      features.catch(() => this.#features.delete(picture));
    }
    return features;
  }
}

function loadingStatus(loadedBytes, totalBytes) {
  const [loaded, total] = [loadedBytes, totalBytes].map((bytes) => Math.round(bytes / MEGABYTE));
  return { state: "loading", message: `${loaded} of ${total} MB`, short: `Loading ${loaded} of ${total} MB` };
}

/** Turns of both roles as questions with their answers; the last has none. */
function pairs(turns) {
  const asked = [];
  for (const { role, text, picture } of turns) {
    if (role === "user") asked.push({ text, picture, answer: "" });
    else asked.at(-1).answer = text;
  }
  return asked;
}

const isEqual = (one, other) =>
  one.text === other.text && one.picture === other.picture && one.answer === other.answer;

function ended({ finishReason, promptTokens, tokenIds, timings }) {
  const runs = Math.round((timings.tokensPerSecond * timings.decode) / 1000);
  return {
    reason: finishReason,
    usage: { prompt_tokens: promptTokens, completion_tokens: tokenIds.length },
    timings: { predicted_n: runs, predicted_ms: timings.decode },
  };
}

function facts({ manifest, variant, imageSize, device }) {
  return {
    id: manifest.source.name,
    precision: variant,
    image_size: imageSize,
    num_image_tokens: (imageSize / manifest.image.patch_size) ** 2,
    context_length: manifest.decoder.context_length,
    providers: { decoder: device === "webgpu" ? "WebGPU" : `WebAssembly${crossOriginIsolated ? ", threads" : ""}` },
    version: manifest.source.exporter.replace("fastvlm-onnx ", ""),
  };
}
