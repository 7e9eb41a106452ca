// The options of an answer, complete and checked.

import { FastVLMError } from "./errors.js";

/**
 * @typedef {object} GenerationOptions
 * @property {number} [maxNewTokens] the largest number of tokens in an answer; 256. A full context
 *   ends it sooner.
 * @property {readonly string[]} [stop] texts that end an answer before they appear in it; no texts.
 * @property {number} [temperature] divides the logits; 0, the default, takes the most probable
 *   token.
 * @property {number} [topK] draw among this many of the most probable tokens; 50, and 0 draws among
 *   all.
 * @property {number} [topP] draw among the most probable tokens whose probabilities reach this sum;
 *   1.
 * @property {number} [minP] draw among tokens at least this many times as probable as the most
 *   probable; 0.
 * @property {number} [repetitionPenalty] divides the logits of tokens that the answer already has;
 *   1.
 * @property {number} [seed] makes a draw repeatable; a new seed each time. The Python runtime draws
 *   other tokens from the same seed.
 * @property {boolean} [ignoreEos] go on past an end token, which then counts as a token; false.
 * @property {boolean} [orient] turn an image file as its EXIF data say, in browsers; false.
 * @property {AbortSignal} [signal] ends the answer: the promise or the iterator rejects with the
 *   signal's reason.
 */

/** @type {Required<Omit<GenerationOptions, "signal" | "seed">>} */
const DEFAULTS = {
  maxNewTokens: 256,
  stop: [],
  temperature: 0,
  topK: 50,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  ignoreEos: false,
  orient: false,
};

/** @typedef {typeof DEFAULTS & {seed?: number, signal?: AbortSignal}} CheckedOptions */

/** @type {[name: keyof CheckedOptions, isGood: (value: any) => boolean, expected: string][]} */
const CHECKS = [
  ["maxNewTokens", (n) => Number.isInteger(n) && n >= 1, "an integer of 1 or more"],
  ["temperature", (n) => Number.isFinite(n) && n >= 0, "0 or more"],
  ["topK", (n) => Number.isInteger(n) && n >= 0, "an integer of 0 (off) or more"],
  ["topP", (n) => n > 0 && n <= 1, "above 0 and at most 1"],
  ["minP", (n) => n >= 0 && n <= 1, "0 (off) to 1"],
  ["repetitionPenalty", (n) => Number.isFinite(n) && n > 0, "above 0, 1 being off"],
  ["seed", (n) => n === undefined || (Number.isInteger(n) && n >= 0), "an integer of 0 or more"],
  [
    "stop",
    (texts) => Array.isArray(texts) && texts.every((text) => typeof text === "string" && text !== ""),
    "a list of texts, none of them empty",
  ],
];

/**
 * @param {GenerationOptions} options
 * @returns {CheckedOptions}
 * @throws {FastVLMError} an option is out of range, or has another name.
 */
export function checkOptions(options) {
  const known = [...Object.keys(DEFAULTS), "seed", "signal"];
  const unknown = Object.keys(options).find((name) => !known.includes(name));
  if (unknown) {
    throw new FastVLMError("input", `${unknown} is no option; expected one of ${known.join(", ")}.`);
  }
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  /** @type {CheckedOptions} */
  const checked = { ...DEFAULTS, ...Object.fromEntries(given) };
  for (const [name, isGood, expected] of CHECKS) {
    if (isGood(checked[name])) continue;
    throw new FastVLMError("input", `${name} is ${JSON.stringify(checked[name])}; expected ${expected}.`);
  }
  return checked;
}
