// An answer's text as its tokens come: whole characters, cut at stop texts, without white space at
// the ends.

/** @import { TextTokenizer } from "./tokenizer.js" */

// Python's white space, so that both runtimes give the same text. JavaScript's differs: it has
// U+FEFF, and lacks U+001C to U+001F and U+0085.
const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const AT_START = new RegExp(`^[${SPACE}]+`);
const AT_END = new RegExp(`[${SPACE}]+$`);

export class AnswerText {
  #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #tokenizer;
  #stop;
  #held = ""; // may begin a stop text
  #spaces = ""; // white space that is at the end so far

  /**
   * @param {TextTokenizer} tokenizer
   * @param {readonly string[]} stop texts that end the answer before they appear in it
   */
  constructor(tokenizer, stop) {
    this.#tokenizer = tokenizer;
    this.#stop = stop;
    /** The text so far. */
    this.text = "";
    /** A stop text appeared, so no more text comes. */
    this.hasStopped = false;
  }

  /**
   * Add a token.
   *
   * @param {number} id
   * @returns {string} the text that is final with it
   */
  add(id) {
    return this.#show(this.#cut(this.#decoder.decode(this.#tokenizer.bytesOf(id), { stream: true })));
  }

  /** @returns {string} the text that was held back for tokens that do not come */
  finish() {
    const text = this.#cut(this.#decoder.decode());
    const held = this.#held;
    this.#held = "";
    return this.#show(text + held);
  }

  /** @param {string} added @returns {string} the text that no stop text can take back */
  #cut(added) {
    if (this.hasStopped) return "";
    const text = this.#held + added;
    const found = this.#stop.map((stop) => text.indexOf(stop)).filter((at) => at >= 0);
    if (found.length > 0) {
      this.hasStopped = true;
      this.#held = "";
      return text.slice(0, Math.min(...found));
    }
    const held = Math.max(0, ...this.#stop.map((stop) => begun(text, stop)));
    this.#held = text.slice(text.length - held);
    return text.slice(0, text.length - held);
  }

  /** @param {string} added */
  #show(added) {
    let text = this.#spaces + (this.text === "" ? added.replace(AT_START, "") : added);
    this.#spaces = AT_END.exec(text)?.[0] ?? "";
    text = text.slice(0, text.length - this.#spaces.length);
    this.text += text;
    return text;
  }
}

/** @param {string} text @param {string} stop @returns {number} length of the longest end of `text` that begins `stop` */
function begun(text, stop) {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length--) {
    if (text.endsWith(stop.slice(0, length))) return length;
  }
  return 0;
}
