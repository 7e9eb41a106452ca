// WebAssembly with 2 threads in headless Chromium; benchmarks/clients.py runs it.
//
//   node benchmark_browser.js PACKAGE VARIANT PICTURE PROMPT MAX_NEW_TOKENS WARMUP REPEATS
//
// The package comes from a file server on this machine. Memory is that of the page's process.

import { readdirSync, readFileSync } from "node:fs";

const [folder, variant, picture, prompt, ...numbers] = process.argv.slice(2);
const [maxNewTokens, warmup, repeats] = numbers.map(Number);
process.env.FASTVLM_ONNX_TEST_VARIANTS ??= folder;
const { openPage } = await import("./test/browser/chromium.js");

/** The content of a file of /proc; empty for a process that has ended. @param {string} file */
function readProcess(file) {
  try {
    return readFileSync(`/proc/${file}`, "utf-8");
  } catch {
    return "";
  }
}

/** @param {string} pid @returns {boolean} */
function isOurs(pid) {
  const parent = /PPid:\s+(\d+)/.exec(readProcess(`${pid}/status`))?.[1] ?? "0";
  return parent === String(process.pid) || (parent !== "0" && isOurs(parent));
}

/** The largest peak memory of this process's pages, in bytes. */
function pagePeakBytes() {
  const pages = readdirSync("/proc").filter(
    (pid) => /^\d+$/.test(pid) && readProcess(`${pid}/cmdline`).includes("--type=renderer") && isOurs(pid),
  );
  const peaks = pages.map((pid) => Number(/VmHWM:\s+(\d+)/.exec(readProcess(`${pid}/status`))?.[1] ?? 0));
  return 1024 * Math.max(...peaks);
}

/** @type {(() => unknown)[]} */
const closing = [];
const context = { after: (/** @type {() => unknown} */ close) => void closing.unshift(close) };
const { page } = await openPage(context, { isIsolated: true, package: folder });
const asked = { variant, prompt, maxNewTokens, warmup, repeats };
const image = readFileSync(picture).toString("base64");
const figures = await page.evaluate(async ({ variant, prompt, maxNewTokens, warmup, repeats, image }) => {
  const { load } = await import(/** @type {string} */ ("/fastvlm/index.web.js"));
  const model = await load("/package", { variant, threads: 2, device: "wasm", cache: false });
  const blob = new Blob([Uint8Array.from(atob(image), (byte) => byte.charCodeAt(0))]);
  /** @type {{first_token: number[], one_token: number[], token_ids: number[]}} */
  const found = { first_token: [], one_token: [], token_ids: [] };
  for (let i = 0; i < warmup + repeats; i++) {
    const { tokenIds, timings } = await model.generate(blob, prompt, { maxNewTokens });
    found.token_ids = tokenIds;
    if (i < warmup) continue;
    found.first_token.push(timings.firstToken / 1000);
    found.one_token.push(1 / timings.tokensPerSecond);
  }
  return { ...found, load: model.loadMilliseconds / 1000 };
}, { ...asked, image });
console.log(JSON.stringify({ ...figures, peak_rss_bytes: pagePeakBytes() }));
for (const close of closing) await close();
