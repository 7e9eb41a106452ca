// Time of an answer in headless Chromium, by WebAssembly; prints the figures as JSON.
//
//   FASTVLM_ONNX_TEST_VARIANTS=DIR node benchmark_browser.js web,int8 [THREADS] [TOKENS]
//
// The first answer of a variant is left out. Variants come one after the other, in one browser.

import { openPage } from "./test/browser/chromium.js";
import { PACKAGE, PROMPT } from "./test/fixtures.js";

const [variants, threads = "2", maxNewTokens = "16"] = process.argv.slice(2);
const ANSWERS = 2;

/** @type {(() => unknown)[]} */
const closing = [];
const context = { after: (/** @type {() => unknown} */ close) => void closing.unshift(close) };
const { page } = await openPage(context, { isIsolated: true, package: PACKAGE });
for (const variant of variants.split(",")) {
  const figures = await page.evaluate(async ({ variant, threads, maxNewTokens, prompt, answers }) => {
    const { load } = await import(/** @type {string} */ ("/fastvlm/index.web.js"));
    const model = await load("/package", { variant, threads, device: "wasm", cache: false });
    const image = await (await fetch("/pictures/shapes.png")).blob();
    await model.generate(image, prompt, { maxNewTokens, ignoreEos: true });
    const found = [];
    for (let i = 0; i < answers; i++) {
      const { timings } = await model.generate(image, prompt, { maxNewTokens, ignoreEos: true });
      found.push({ first_token_ms: timings.firstToken, token_ms: 1000 / timings.tokensPerSecond });
    }
    const { loadMilliseconds } = model;
    await model.close();
    return { load_ms: loadMilliseconds, answers: found, threads: crossOriginIsolated ? threads : 1 };
  }, { variant, threads: Number(threads), maxNewTokens: Number(maxNewTokens), prompt: PROMPT, answers: ANSWERS });
  console.log(JSON.stringify({ variant, ...figures }));
}
for (const close of closing) await close();
