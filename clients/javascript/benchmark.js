// The part of benchmarks/clients.py that runs in Node: answers in a process of its own, and prints
// the figures as JSON.

import { readFileSync } from "node:fs";

import sharp from "sharp";

import { load } from "./src/index.node.js";

const [folder, variant, picture, prompt, ...numbers] = process.argv.slice(2);
const [maxNewTokens, warmup, repeats] = numbers.map(Number);
const MILLISECOND = 1e-3;

const model = await load(folder, { variant });
/** @type {{first_token: number[], one_token: number[], token_ids: number[]}} */
const found = { first_token: [], one_token: [], token_ids: [] };
for (let i = 0; i < warmup + repeats; i++) {
  const { tokenIds, timings } = await model.generate(sharp(picture), prompt, { maxNewTokens });
  found.token_ids = tokenIds;
  if (i < warmup) continue;
  found.first_token.push(timings.firstToken * MILLISECOND);
  found.one_token.push(1 / timings.tokensPerSecond);
}
const [, kilobytes] = /** @type {RegExpExecArray} */ (
  /VmHWM:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf-8"))
);
const record = { ...found, load: model.loadMilliseconds * MILLISECOND, peak_rss_bytes: 1024 * Number(kilobytes) };
console.log(JSON.stringify(record));
