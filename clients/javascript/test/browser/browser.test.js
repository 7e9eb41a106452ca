import assert from "node:assert/strict";
import path from "node:path";
import { describe, test } from "node:test";

import { ANSWER, NEEDS_GOLDEN, PROMPT, QUESTIONS, VARIANTS, changeManifest, copyOfPackage, damage } from "../fixtures.js";
import { NEEDS_CHROMIUM, SWIFTSHADER, openPage } from "./chromium.js";

/** @typedef {import("playwright-core").Page} Page */

// What the page runs. Chromium resolves the import; the types of Node do not.
const WEB = "/fastvlm/index.web.js";

/**
 * The differences from golden.json, and the answers that are not Python's.
 *
 * @param {Page} page
 * @param {{variant: string, device: string, threads?: number}} options
 */
function wrongAnswers(page, options) {
  return page.evaluate(async ({ web, options, questions }) => {
    const { load, GoldenCheck, parseGolden } = await import(web);
    const model = await load("/package", options);
    const golden = parseGolden(await (await fetch("/package/golden.json")).text());
    const imageOf = (/** @type {any} */ bytes, /** @type {string} */ type) => new Blob([bytes], { type });
    const wrong = await new GoldenCheck(model, golden, imageOf).differences();
    for (const [name, asked] of Object.entries(questions)) {
      const image = await model.encodeImage(await (await fetch(`/pictures/${name}`)).blob());
      for (const [prompt, expected] of Object.entries(asked)) {
        const { text } = await model.generate(image, prompt);
        if (text !== expected) wrong.push(`${name}: ${prompt}: ${text}`);
      }
    }
    const { device } = model;
    await model.close();
    return { device, wrong, isIsolated: crossOriginIsolated };
  }, { web: WEB, options: /** @type {any} */ (options), questions: QUESTIONS });
}

describe("in Chromium", NEEDS_CHROMIUM, () => {
  for (const threads of [1, 2]) {
    test(`WebAssembly with ${threads} threads answers as Python does`, NEEDS_GOLDEN, async (context) => {
      const { page } = await openPage(context, { isIsolated: threads > 1 });
      for (const variant of VARIANTS) {
        const { device, wrong, isIsolated } = await wrongAnswers(page, { variant, device: "wasm", threads });
        assert.deepEqual([device, isIsolated, wrong], ["wasm", threads > 1, []], variant);
      }
    });
  }

  test("WebGPU answers as Python does where its kernels are right", NEEDS_GOLDEN, async (context) => {
    const { page } = await openPage(context, { args: SWIFTSHADER });
    await page.evaluate(() => {
      // ONNX Runtime's attention is wrong with SwiftShader's subgroups of 4, and right without them.
      const { GPUAdapter } = /** @type {any} */ (globalThis);
      const features = /** @type {any} */ (Object.getOwnPropertyDescriptor(GPUAdapter.prototype, "features"));
      const withoutSubgroups = function () {
        // @ts-ignore
        const names = /** @type {string[]} */ ([...features.get.call(this)]);
        return new Set(names.filter((name) => !name.includes("subgroup")));
      };
      Object.defineProperty(GPUAdapter.prototype, "features", { get: withoutSubgroups });
    });
    const { device, wrong } = await wrongAnswers(page, { variant: "fp32", device: "auto" });
    assert.deepEqual([device, wrong], ["webgpu", []]);
  });

  test("WebGPU is not used where its golden answers are wrong", NEEDS_GOLDEN, async (context) => {
    const { page } = await openPage(context, { args: SWIFTSHADER });
    const found = await page.evaluate(async ({ web }) => {
      const { load } = await import(web);
      const { device, deviceReason } = await load("/package", { variant: "fp32" });
      const error = await load("/package", { variant: "fp32", device: "webgpu" }).catch((/** @type {any} */ e) => e);
      return { device, deviceReason, code: error.code, message: error.message };
    }, { web: WEB });
    assert.deepEqual([found.device, found.code], ["wasm", "engine"]);
    assert.match(found.deviceReason, /its results are wrong here \(logit/);
    assert.match(found.message, /WebGPU cannot be used: its results are wrong here .*take the device wasm or auto/);
  });

  test("WebAssembly answers with `web`, also where there is WebGPU", async (context) => {
    const folder = await copyOfPackage(context);
    await changeManifest(folder, (manifest) => {
      const { web, int8 } = manifest.variants;
      manifest.variants = { int8, web };
    });
    const { page } = await openPage(context, { package: folder, args: SWIFTSHADER });
    const found = await page.evaluate(async ({ web }) => {
      const { load } = await import(web);
      const { variant } = await load("/package", { device: "wasm" });
      const { device, deviceReason } = await load("/package", { variant: "web" });
      const error = await load("/package", { variant: "web", device: "webgpu" }).catch((/** @type {any} */ e) => e);
      return { variant, device, deviceReason, message: error.message };
    }, { web: WEB });
    assert.deepEqual([found.variant, found.device], ["web", "wasm"]);
    assert.match(found.deviceReason, /^web is not made for WebGPU; add int4 with/);
    assert.match(found.message, /WebGPU cannot be used: web is not made for WebGPU; .*; take the device wasm or auto/);
  });

  test("every kind of image gives the same features", async (context) => {
    const { page } = await openPage(context);
    const found = await page.evaluate(async ({ web }) => {
      const { load } = await import(web);
      const model = await load("/package", { variant: "fp32", device: "wasm" });
      const blob = await (await fetch("/pictures/shapes.png")).blob();
      const bitmap = await createImageBitmap(blob);
      const element = new Image();
      element.src = "/pictures/shapes.png";
      await element.decode();
      const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
      const context = /** @type {any} */ (canvas.getContext("2d"));
      context.drawImage(bitmap, 0, 0);
      const data = context.getImageData(0, 0, bitmap.width, bitmap.height);
      const frame = new VideoFrame(bitmap, { timestamp: 0 });
      const kinds = { blob, bitmap, element, canvas, data, frame };
      const expected = String((await model.encodeImage(blob)).data);
      const differing = [];
      for (const [kind, image] of Object.entries(kinds)) {
        if (String((await model.encodeImage(image)).data) !== expected) differing.push(kind);
      }
      frame.close();
      return differing;
    }, { web: WEB });
    assert.deepEqual(found, []);
  });

  test("a file that was kept is checked, and a damaged or half file is never used", async (context) => {
    const folder = await copyOfPackage(context);
    const { page, server } = await openPage(context, { package: folder });
    const WEIGHTS = "decoder.fp32.onnx.data";
    const load = () => page.evaluate(async ({ web }) => {
      const { load } = await import(web);
      try {
        const model = await load("/package", { variant: "fp32", device: "wasm" });
        const { text } = await model.generate(await (await fetch("/pictures/shapes.png")).blob(), "Describe the image.");
        await model.close();
        return text;
      } catch (error) {
        return `${/** @type {any} */ (error).code}: ${/** @type {any} */ (error).message}`;
      }
    }, { web: WEB });
    const kept = () => page.evaluate(async () => {
      const requests = await (await caches.open("fastvlm-onnx")).keys();
      return requests.map(({ url }) => url.split("/").pop());
    });
    const asked = () => server.requests.splice(0).filter((name) => name === WEIGHTS).length;

    server.halved.add(WEIGHTS);
    assert.match(await load(), /^download: .*decoder.fp32.onnx.data did not come whole/);
    assert.ok(!(await kept()).includes(WEIGHTS));
    server.halved.clear();
    assert.equal(await load(), ANSWER);
    assert.equal(asked(), 2);
    assert.equal(await load(), ANSWER);
    assert.equal(asked(), 0, "the second time nothing is downloaded");

    await page.evaluate(async (name) => {
      const cache = await caches.open("fastvlm-onnx");
      const [request] = (await cache.keys()).filter(({ url }) => url.endsWith(name));
      const content = new Uint8Array(await (await cache.match(request))?.arrayBuffer() ?? []);
      content[5] ^= 1;
      await cache.put(request, new Response(content));
    }, WEIGHTS);
    assert.equal(await load(), ANSWER);
    assert.equal(asked(), 1, "a damaged file is downloaded again");

    await page.evaluate(async ({ web }) => (await import(web)).clearCache(), { web: WEB });
    await damage(path.join(folder, WEIGHTS));
    assert.match(await load(), /^package: .*decoder.fp32.onnx.data is not the file that was exported/);
    assert.ok(!(await kept()).includes(WEIGHTS));
  });

  test("a picture that is none and a missing package are refused", async (context) => {
    const { page } = await openPage(context);
    const found = await page.evaluate(async ({ web }) => {
      const { load, loadInWorker } = await import(web);
      const model = await loadInWorker("/package", { variant: "fp32", device: "wasm" });
      const errors = [
        model.generate(new Blob(["no image"], { type: "image/png" }), "What?"),
        model.generate({ width: 5 }, "What?"),
        model.generate(new Image(), "What?"),
        loadInWorker("/nowhere", { device: "wasm" }),
        load("/package", { device: "cpu" }),
      ].map((promise) => promise.catch((/** @type {any} */ error) => `${error.name} ${error.code} ${error.message}`));
      return Promise.all(errors);
    }, { web: WEB });
    const expected = [
      /^FastVLMError input the image of type image\/png and 8 bytes cannot be decoded/,
      /^FastVLMError input the image is Object and cannot be drawn/,
      /^FastVLMError input the <img> holds no image/,
      /^FastVLMError download the server answered 404/,
      /^FastVLMError input the device is cpu; expected auto, wasm or webgpu/,
    ];
    expected.forEach((message, i) => assert.match(found[i], message));
  });

  test("a worker answers, converses, aborts, and leaves the page alive", async (context) => {
    const { page } = await openPage(context);
    const found = await page.evaluate(async ({ web, prompt }) => {
      const { loadInWorker } = await import(web);
      const files = new Set();
      const onProgress = (/** @type {any} */ { file }) => files.add(file);
      const model = await loadInWorker("/package", { variant: "int4", device: "wasm", onProgress });
      const blob = await (await fetch("/pictures/shapes.png")).blob();
      const chat = await model.chat();
      let ticks = 0;
      const ticking = setInterval(() => ticks++, 5);
      const first = await chat.ask(prompt, blob);
      clearInterval(ticking);
      for await (const { text } of chat.stream(prompt)) if (text) break;
      const third = await chat.ask("Tell me how many stars are there.");
      const controller = new AbortController();
      let aborted = "";
      try {
        for await (const { text } of model.stream(blob, prompt, { signal: controller.signal })) {
          if (text) controller.abort();
        }
      } catch (error) {
        aborted = /** @type {any} */ (error).name;
      }
      const features = await model.encodeImage(blob);
      const { text } = await model.generate([features], prompt);
      model.close();
      const closed = await model.generate(null, prompt).catch((/** @type {any} */ error) => error.message);
      return { texts: [first.text, third.text, text], ticks, aborted, closed, files: [...files] };
    }, { web: WEB, prompt: PROMPT });
    assert.deepEqual(found.texts, [ANSWER, "There is one star.", ANSWER]);
    assert.ok(found.ticks > 0);
    assert.equal(found.aborted, "AbortError");
    assert.match(found.closed, /the model is closed; load it again/);
    assert.ok(found.files.includes("decoder.int4.onnx.data"));
  });
});
