// Text <-> token ids. A user's text holds no special tokens: `<|im_end|>` in it is encoded as
// characters. Only a template holds special tokens.

import { FastVLMError, inOneLine } from "../errors.js";
import { TOKENIZER_FILE } from "../manifest.js";

/**
 * The part of `@huggingface/tokenizers` that this client uses.
 *
 * @typedef {new (json: object, config: object) =>
 *   {encode(text: string, options: {add_special_tokens: boolean}): {ids: number[]}}} TokenizerClass
 *
 * @typedef {{id: number, content: string, special: boolean}} AddedToken
 */

export class TextTokenizer {
  /** @type {Map<string, number>} */
  #special = new Map();
  // Tokens by id as the vocabulary writes them. Their bytes in objects of their own would be 40 MB with
  // the vocabulary of Qwen2, which V8 goes through whenever it collects garbage.
  /** @type {string[]} */
  #tokens = [];
  /** Texts of added tokens; empty for a special token. @type {Map<number, string>} */
  #added = new Map();
  // A template has a handful of texts, which come back with each question.
  /** @type {Map<string, readonly number[]>} */
  #templates = new Map();
  /** @type {RegExp} */
  #splitter;
  /** @type {InstanceType<TokenizerClass>} */
  #tokenizer;

  /**
   * @param {TokenizerClass} Tokenizer
   * @param {string} text content of tokenizer.json
   * @param {string} where the package's folder or address, for messages
   * @throws {FastVLMError} the text is no tokenizer.
   */
  constructor(Tokenizer, text, where) {
    try {
      const json = JSON.parse(text);
      /** @type {AddedToken[]} */
      const added = json.added_tokens;
      const ordinary = added.filter(({ special }) => !special);
      // A tokenizer that knows no special tokens never makes one of a user's text.
      this.#tokenizer = new Tokenizer({ ...json, added_tokens: ordinary }, {});
      for (const [token, id] of Object.entries(json.model.vocab)) this.#tokens[id] = token;
      for (const { id, content, special } of added) {
        if (special) this.#special.set(content, id);
        this.#added.set(id, special ? "" : content);
      }
      this.#splitter = splitterOf([...this.#special.keys()]);
    } catch (error) {
      throw new FastVLMError(
        "package",
        `${where}: ${TOKENIZER_FILE} is no tokenizer (${inOneLine(error)}); export the package again.`,
        { cause: error },
      );
    }
  }

  /**
   * Token ids of a text in which special tokens are characters.
   *
   * @param {string} text
   * @returns {number[]}
   */
  encode(text) {
    if (text === "") return [];
    return this.#tokenizer.encode(text.normalize("NFC"), { add_special_tokens: false }).ids;
  }

  /**
   * Token ids of a template in which special tokens are tokens.
   *
   * @param {string} text
   * @returns {number[]}
   */
  encodeTemplate(text) {
    let ids = this.#templates.get(text);
    if (ids === undefined) {
      const pieces = text.normalize("NFC").split(this.#splitter);
      ids = pieces.flatMap((piece) => {
        const id = this.#special.get(piece);
        return id === undefined ? this.encode(piece) : [id];
      });
      this.#templates.set(text, ids);
    }
    return [...ids];
  }

  /**
   * The bytes of a token; none for a special token.
   *
   * @param {number} id
   */
  bytesOf(id) {
    const token = this.#added.get(id) ?? this.#tokens[id] ?? "";
    const bytes = Array.from(token, (character) => ALPHABET.get(character));
    // Added tokens are texts, and a vocabulary may hold words outside the byte alphabet, which encode
    // never returns.
    const isText = this.#added.has(id) || bytes.includes(undefined);
    return isText ? ENCODER.encode(token) : Uint8Array.from(bytes, Number);
  }
}

/** @param {string[]} tokens */
function splitterOf(tokens) {
  const escaped = tokens.map((token) => token.replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&"));
  return new RegExp(`(${escaped.join("|") || "(?!)"})`);
}

const ENCODER = new TextEncoder();

/**
 * Byte-level BPE's printable stand-in for each byte.
 *
 * Source: GPT-2's encoder; bytes that print stand for themselves, the rest follow from U+0100 on.
 *
 * @returns {Map<string, number>} byte by character
 */
function byteAlphabet() {
  const alphabet = new Map();
  let others = 0;
  for (let byte = 0; byte < 256; byte++) {
    const isPrintable =
      (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
    alphabet.set(String.fromCharCode(isPrintable ? byte : 0x100 + others++), byte);
  }
  return alphabet;
}

const ALPHABET = byteAlphabet();
