// transformers.js in Node on a folder of `--layout transformers-js`; benchmarks/clients.py runs it.
//
//   node benchmark.mjs FOLDER DTYPE PICTURE PROMPT MAX_NEW_TOKENS WARMUP REPEATS

import { readFileSync } from "node:fs";
import path from "node:path";

import {
  AutoModelForImageTextToText,
  AutoProcessor,
  BaseStreamer,
  env,
  RawImage,
} from "@huggingface/transformers";

const [folder, dtype, picture, text, ...numbers] = process.argv.slice(2);
const [maxNewTokens, warmup, repeats] = numbers.map(Number);

/** Notes the time of each token. The first call has the prompt. */
class Clock extends BaseStreamer {
  times = [];
  put() {
    this.times.push(performance.now());
  }
  end() {}
}

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = path.dirname(path.resolve(folder));
const name = path.basename(path.resolve(folder));
const beganLoad = performance.now();
const processor = await AutoProcessor.from_pretrained(name);
const model = await AutoModelForImageTextToText.from_pretrained(name, { dtype });
const found = { load: (performance.now() - beganLoad) / 1000, first_token: [], one_token: [] };
for (let i = 0; i < warmup + repeats; i++) {
  const began = performance.now();
  const image = await RawImage.read(picture);
  const messages = [{ role: "user", content: [{ type: "image" }, { type: "text", text }] }];
  const prompt = processor.apply_chat_template(messages, { add_generation_prompt: true });
  const inputs = await processor(image, prompt, { add_special_tokens: false });
  const streamer = new Clock();
  const outputs = await model.generate({ ...inputs, max_new_tokens: maxNewTokens, streamer });
  const ids = outputs.slice(null, [inputs.input_ids.dims.at(-1), null]).tolist()[0].map(Number);
  // The token that ends an answer is no part of it.
  found.token_ids = ids.length < maxNewTokens ? ids.slice(0, -1) : ids;
  if (i < warmup) continue;
  const [, first, ...rest] = streamer.times;
  found.first_token.push((first - began) / 1000);
  found.one_token.push((rest.at(-1) - first) / 1000 / rest.length);
}
const [, kilobytes] = /VmHWM:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf-8"));
console.log(JSON.stringify({ ...found, peak_rss_bytes: 1024 * Number(kilobytes) }));
