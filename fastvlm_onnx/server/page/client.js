// Answers from a fastvlm-onnx server. No other module knows of HTTP, of keys or of `see:` addresses.
//
// The page uses the public members of a client alone, so another source of answers can take its place:
// `--layout web-page` puts clients/javascript/page/client.js there, which answers in the browser.

import { AnswerError } from "./errors.js";

const POLL_MILLISECONDS = 1000;
// A picture that the server forgets in less time is sent again instead of named.
const EXPIRY_MARGIN_MILLISECONDS = 2000;
const KEY_ITEM = "fastvlm-onnx key";

export class Client {
  #base;
  #seen = new WeakMap(); // Picture -> promise of {url, expires}

  /** Where pictures go, for the user. */
  privacy =
    "Pictures and questions go to this server and nowhere else, and the server writes no picture to disk.";
  /** The source of answers may want a key. */
  hasKeys = true;
  /** An answer can have a form: JSON, or a schema. */
  formsAnswers = true;

  /** @param {string} base address of the folder that the API stands in */
  constructor(base) {
    this.#base = base;
    /** What the server says of its model: {id, ...}; null before it is ready. */
    this.model = null;
  }

  /** The key of this tab; an empty string where there is none. It is gone with the tab. */
  get key() {
    return sessionStorage.getItem(KEY_ITEM) ?? "";
  }

  set key(key) {
    if (key) sessionStorage.setItem(KEY_ITEM, key);
    else sessionStorage.removeItem(KEY_ITEM);
  }

  /**
   * Wait for the model.
   *
   * @yields {{state: "loading"|"unreachable"|"failed"|"ready", message: string, short?: string}} each
   *   second; "ready" is last. short: takes the place of the page's own words for the state.
   * @throws {AnswerError} of kind "key" where the server wants a key that it did not get.
   */
  async *loadStatus() {
    for (;;) {
      try {
        await this.#fetch("health");
        const list = await (await this.#fetch("v1/models")).json();
        this.model = list.data[0];
        yield { state: "ready", message: this.model.id };
        return;
      } catch (error) {
        if (error.kind === "key") throw error;
        const isKnown = error.kind === "unreachable" || error.kind === "loading";
        yield { state: isKnown ? error.kind : "failed", message: error.message };
      }
      await new Promise((resolve) => setTimeout(resolve, POLL_MILLISECONDS));
    }
  }

  /**
   * Let the server encode a picture before a question about it comes.
   *
   * @param {import("./picture.js").Picture} picture
   * @returns {Promise<void>} the same promise for the same picture until the server forgets it.
   */
  async see(picture) {
    await (this.#remembered(picture) ?? this.#remember(picture));
  }

  /**
   * Answer the last turn.
   *
   * @param {{turns: {role: string, text: string, picture?: import("./picture.js").Picture}[],
   *   maxTokens: number, temperature: number, responseFormat: object|null}} request
   * @param {AbortSignal} signal stops the answer, here and on the server.
   * @yields {{text: string}|{reason: string, usage: object, timings: object}} the second kind is last.
   * @throws {AnswerError}
   */
  async *answer(request, signal) {
    let response;
    try {
      response = await this.#complete(request, signal);
    } catch (error) {
      if (error.kind !== "picture gone") throw error;
      for (const turn of request.turns) if (turn.picture) this.#seen.delete(turn.picture);
      response = await this.#complete(request, signal);
    }
    const end = { reason: "", usage: {}, timings: {} };
    try {
      for await (const event of serverEvents(response.body)) {
        if (event === "[DONE]") break;
        const chunk = JSON.parse(event);
        if (chunk.error) throw new AnswerError("failed", sentence(chunk.error.message));
        Object.assign(end.usage, chunk.usage);
        Object.assign(end.timings, chunk.timings);
        const choice = chunk.choices[0];
        if (choice?.delta?.content) yield { text: choice.delta.content };
        if (choice?.finish_reason) end.reason = choice.finish_reason;
      }
    } catch (error) {
      if (error instanceof AnswerError || signal.aborted) throw error;
      throw new AnswerError("failed", "The connection broke in the middle of the answer.");
    }
    if (!end.reason) {
      throw new AnswerError("failed", "The server ended the answer before it was complete.");
    }
    yield end;
  }

  // --- requests ----------------------------------------------------------------------------------

  async #complete(request, signal) {
    const messages = [];
    for (const { role, text, picture } of request.turns) {
      const words = { type: "text", text };
      const content = picture ? [imagePart(await this.#address(picture)), words] : text;
      messages.push({ role, content });
    }
    const body = {
      model: this.model?.id,
      messages,
      max_tokens: request.maxTokens,
      temperature: request.temperature,
      stream: true,
      stream_options: { include_usage: true },
    };
    if (request.responseFormat) body.response_format = request.responseFormat;
    signal.throwIfAborted();
    return this.#fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
  }

  async #address(picture) {
    try {
      const seen = await this.#remembered(picture);
      if (seen && seen.expires > Date.now() + EXPIRY_MARGIN_MILLISECONDS) return seen.url;
    } catch {
      // The picture itself says the same as its address, and its error is then the answer's.
    }
    return picture.dataUrl();
  }

  #remembered(picture) {
    return this.#seen.get(picture);
  }

  #remember(picture) {
    const promise = this.#fetch("v1/see", {
      method: "POST",
      headers: { "Content-Type": picture.blob.type },
      body: picture.blob,
    })
      .then((response) => response.json())
      .then(({ id, expires_at }) => ({ url: id, expires: expires_at * 1000 }));
    this.#seen.set(picture, promise);
    promise.then(
      ({ expires }) => setTimeout(() => this.#seen.delete(picture), expires - Date.now()),
      () => this.#seen.delete(picture),
    );
    return promise;
  }

  async #fetch(path, options = {}) {
    const headers = { ...options.headers };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    let response;
    try {
      response = await fetch(new URL(path, this.#base), { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new AnswerError(
        "unreachable",
        "The server does not answer. Check that fastvlm-onnx serve is running.",
      );
    }
    if (!response.ok) throw await refusal(response, Boolean(this.key));
    return response;
  }
}

const imagePart = (url) => ({ type: "image_url", image_url: { url } });

/** The error that a response stands for. */
async function refusal(response, hadKey) {
  const { error } = await response.json().catch(() => ({}));
  const message = sentence(error?.message ?? `the server answered with status ${response.status}`);
  const seconds = Number(response.headers.get("Retry-After")) || 0;
  if (error?.code === "see_not_found") return new AnswerError("picture gone", message);
  switch (response.status) {
    case 401:
      return new AnswerError(
        "key",
        hadKey ? "The server does not know this key." : "The server asks for a key.",
      );
    case 413:
      return new AnswerError("refused", `The picture is too large for the server. ${message}`);
    case 429:
      return new AnswerError("busy", `The server is busy. Try again in ${seconds || 1} s.`, seconds);
    case 503:
      return new AnswerError("loading", message);
    default:
      return new AnswerError(response.status < 500 ? "refused" : "failed", message);
  }
}

/** The data of each event of a stream of server-sent events. */
async function* serverEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (waiting + value).split("\n");
      waiting = lines.pop();
      // The server writes the data of an event on one line; comments keep a silent stream open.
      for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6).trimEnd();
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

function sentence(message) {
  const text = String(message).trim();
  const ended = /[.!?]$/.test(text) ? text : `${text}.`;
  return ended[0].toUpperCase() + ended.slice(1);
}
