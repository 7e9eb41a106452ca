// The course of questions and answers, without any element of the page.
//
// One answer runs at a time. A new question, another mode or `stop` ends the one that runs.

import { AnswerError } from "./errors.js";

const MAX_HISTORY = 100;

/**
 * A question and its answer.
 * @typedef {{picture: import("./picture.js").Picture, question: string, answer: string,
 *   time: Date, isStructured: boolean, ttft: number|null, timings: object, ended: string}} Turn
 *   ttft: milliseconds from the start of preprocessing to the first token; ended: "" while the
 *   answer comes, then "stop", "length", "stopped" or "failed".
 */

/** Events: "change" (mode, phase, turns), "text", "ended" (detail: the turn), "error" (detail: the error). */
export class Session extends EventTarget {
  #client;
  #stage;
  #answering = null; // AbortController of the answer that runs
  #series = null; // AbortController of a continuous series that runs

  constructor(client, stage) {
    super();
    this.#client = client;
    this.#stage = stage;
    /** @type {"single"|"continuous"} */
    this.mode = "single";
    /** @type {"idle"|"prompt"|"response"} */
    this.phase = "idle";
    /** @type {Turn[]} turns about the present picture, the oldest first */
    this.turns = [];
    /** @type {Turn[]} every turn of this tab, the newest first */
    this.history = [];
    /** Earlier turns are sent along with a question. */
    this.remembers = true;
    this.options = { maxTokens: 240, temperature: 0, responseFormat: null };
  }

  get isRunning() {
    return this.#series !== null;
  }

  setMode(mode) {
    this.stop();
    this.mode = mode;
    this.#tell("change");
  }

  /** Ask about the picture on the stage; a live one is frozen. */
  async ask(question) {
    this.stop();
    const started = performance.now();
    const answering = (this.#answering = new AbortController());
    this.#setPhase("prompt");
    try {
      const picture = await this.#stage.take();
      if (answering.signal.aborted) return;
      this.#stage.freeze(picture);
      if (picture !== this.turns[0]?.picture) this.turns = [];
      await this.#answer(picture, question, started, answering);
    } catch (error) {
      this.#fail(error);
    }
  }

  /**
   * Ask about picture after picture until `pause` or `stop`.
   *
   * @param {() => string} question read anew for each picture
   */
  async run(question) {
    this.stop();
    this.#stage.goLive();
    const series = (this.#series = new AbortController());
    this.#tell("change");
    let last = null;
    try {
      while (!series.signal.aborted) {
        const { picture, started } = await this.#stage.next(last, series.signal);
        last = picture;
        this.turns = [];
        await this.#answerPatiently(picture, question(), started, series.signal);
      }
    } catch (error) {
      if (error.name !== "AbortError") this.#fail(error);
    } finally {
      if (this.#series === series) this.#series = null;
      this.#tell("change");
    }
  }

  /** End a series; the answer that runs comes to its end. */
  pause() {
    this.#series?.abort();
    this.#series = null;
    if (this.#stage.isLive && this.turns.length > 0) this.#stage.freeze(this.turns[0].picture);
    this.#tell("change");
  }

  /** End a series and the answer that runs. */
  stop() {
    this.#series?.abort();
    this.#series = null;
    this.#answering?.abort();
    this.#answering = null;
    this.#setPhase("idle");
  }

  forget() {
    this.history = [];
    this.#tell("change");
  }

  /**
   * Let the client prepare the picture that stands still, while the user writes a question.
   *
   * @returns {Promise<boolean>} the present picture is prepared. Any other can still be asked about.
   */
  async prepare() {
    if (!this.#stage.hasPicture || this.#stage.isLive || this.#client.model === null) return false;
    try {
      const picture = await this.#stage.take();
      await this.#client.see(picture);
      return picture === (await this.#stage.take());
    } catch {
      return false; // A question about the picture will say why.
    }
  }

  /** Show an earlier turn and its picture again. */
  reopen(turn) {
    this.stop();
    this.#stage.show(turn.picture);
    this.turns = [turn];
    this.#tell("change");
  }

  // --- one answer --------------------------------------------------------------------------------

  /** @param {AbortController} answering the one that `stop` aborts */
  async #answer(picture, question, started, answering) {
    const earlier = this.remembers ? this.turns : [];
    const request = { turns: [...earlier.flatMap(bothSides), user(question)], ...this.options };
    request.turns[0].picture = picture;
    const turn = {
      picture,
      question,
      answer: "",
      time: new Date(),
      isStructured: this.options.responseFormat !== null,
      ttft: null,
      timings: {},
      ended: "",
    };
    this.turns.push(turn);
    this.#setPhase("prompt");
    try {
      for await (const piece of this.#client.answer(request, answering.signal)) {
        if (piece.text) {
          if (turn.ttft === null) {
            turn.ttft = performance.now() - started;
            if (!answering.signal.aborted) this.#setPhase("response");
          }
          turn.answer += piece.text;
          this.#tell("text");
        } else {
          turn.ended = piece.reason;
          turn.timings = piece.timings;
        }
      }
    } catch (error) {
      turn.ended = answering.signal.aborted ? "stopped" : "failed";
      if (!answering.signal.aborted) throw error;
    } finally {
      if (turn.answer) this.history = [turn, ...this.history].slice(0, MAX_HISTORY);
      else this.turns = this.turns.filter((one) => one !== turn);
      if (this.#answering === answering) {
        this.#answering = null;
        this.#setPhase("idle");
      } else {
        this.#tell("change");
      }
      this.dispatchEvent(new CustomEvent("ended", { detail: turn }));
    }
  }

  /** A series waits where the server is busy. */
  async #answerPatiently(picture, question, started, signal) {
    const answering = (this.#answering = new AbortController());
    try {
      await this.#answer(picture, question, started, answering);
    } catch (error) {
      if (!(error instanceof AnswerError && error.kind === "busy")) throw error;
      this.#fail(error);
      await new Promise((resolve) => {
        setTimeout(resolve, 1000 * Math.max(1, error.retrySeconds));
        signal.addEventListener("abort", resolve, { once: true });
      });
    }
  }

  #fail(error) {
    this.#setPhase("idle");
    this.dispatchEvent(new CustomEvent("error", { detail: error }));
  }

  #setPhase(phase) {
    this.phase = phase;
    this.#tell("change");
  }

  #tell(event) {
    this.dispatchEvent(new Event(event));
  }
}

const user = (text) => ({ role: "user", text });

/** A turn as the client takes it; an answer that failed was none. */
const bothSides = ({ question, answer, ended }) =>
  ended === "failed" || answer === "" ? [] : [user(question), { role: "assistant", text: answer }];
