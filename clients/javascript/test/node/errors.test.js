import assert from "node:assert/strict";
import { rm, truncate, writeFile } from "node:fs/promises";
import path from "node:path";
import { describe, test } from "node:test";

import { load } from "fastvlm-onnx";

import { ANSWER, PACKAGE, PROMPT, changeManifest, copyOfPackage, damage, picture } from "../fixtures.js";

/** @param {Promise<unknown>} promise @param {string} code @param {RegExp} message */
async function refused(promise, code, message) {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof Error);
    assert.equal(error.name, "FastVLMError");
    assert.match(error.message, message);
    assert.ok(!error.message.includes("\n"), "an error is one line");
    assert.equal(/** @type {any} */ (error).code, code);
    return true;
  });
}

describe("load refuses", () => {
  test("a folder without a manifest", async () => {
    await refused(load("/nowhere"), "package", /\/nowhere: has no fastvlm.json .*ENOENT.*expected a folder/);
  });

  for (const [what, change, message] of /** @type {[string, (manifest: any) => void, RegExp][]} */ ([
    ["another format", (manifest) => (manifest.format_version = 3), /has format 3, expected 2; .*install a fastvlm-onnx/],
    ["a missing key", (manifest) => delete manifest.decoder.head_dim, /decoder.head_dim is missing/],
    ["a value of another type", (manifest) => (manifest.prompt.user = 1), /prompt.user is 1, expected a text/],
    ["another padding", (manifest) => (manifest.image.padding = "crop"), /image has crop, .*expected pad/],
    [
      "a file name that leaves the folder",
      (manifest) => (manifest.variants.fp32.decoder = "../decoder.onnx"),
      /"\.\.\/decoder.onnx" is no file name/,
    ],
    ["a file that is not listed", (manifest) => delete manifest.files["tokenizer.json"], /tokenizer.json/],
    [
      "a number format of the cache that JavaScript lacks",
      (manifest) => (manifest.graphs["decoder.fp32.onnx"].cache_dtype = "bfloat16"),
      /are of type bfloat16; expected float32 or float16/,
    ],
  ])) {
    test(what, async (context) => {
      const folder = await copyOfPackage(context);
      await changeManifest(folder, change);
      const code = what.startsWith("a number format") ? "engine" : "package";
      await refused(load(folder, { variant: "fp32" }), code, message);
    });
  }

  test("a manifest that is not JSON", async (context) => {
    const folder = await copyOfPackage(context);
    await truncate(path.join(folder, "fastvlm.json"), 100);
    await refused(load(folder), "package", /fastvlm.json is not JSON/);
  });

  for (const name of ["decoder.fp32.onnx", "decoder.fp32.onnx.data", "tokenizer.json", "embed_tokens.npy"]) {
    test(`${name} when it is altered, cut or missing`, async (context) => {
      const folder = await copyOfPackage(context);
      const file = path.join(folder, name);
      await damage(file);
      await refused(load(folder, { variant: "fp32" }), "package", new RegExp(`${name} is not the file that was exported`));
      await truncate(file, 1000);
      await refused(load(folder, { variant: "fp32" }), "package", new RegExp(`${name} has 1000 bytes, expected`));
      await rm(file);
      await refused(load(folder, { variant: "fp32" }), "package", new RegExp(`${name} cannot be read .*ENOENT`));
    });
  }

  test("a tokenizer that is none", async (context) => {
    const folder = await copyOfPackage(context);
    await writeFile(path.join(folder, "tokenizer.json"), "{}");
    const { createHash } = await import("node:crypto");
    const sha256 = createHash("sha256").update("{}").digest("hex");
    await changeManifest(folder, (manifest) => (manifest.files["tokenizer.json"] = { bytes: 2, sha256 }));
    await refused(load(folder), "package", /tokenizer.json is no tokenizer/);
  });

  test("variants, image sizes, devices and options that are not there", async () => {
    await refused(load(PACKAGE, { variant: "bf16" }), "input", /has the variants fp32, .*expected bf16; add it/);
    await refused(load(PACKAGE, { imageSize: 512 }), "input", /exported for 256 pixels, expected 512; add it/);
    await refused(load(PACKAGE, { device: "webgpu" }), "input", /the device is webgpu; expected auto or cpu/);
    await refused(load(PACKAGE, { threads: 0 }), "input", /threads is 0; expected an integer of 1 or more/);
    await refused(load(PACKAGE, /** @type {any} */ ({ precision: "int8" })), "input", /precision is no option/);
  });

  test("to go on after its signal has aborted", async () => {
    await assert.rejects(load(PACKAGE, { signal: AbortSignal.abort() }), { name: "AbortError" });
  });
});

describe("a model refuses", async () => {
  const model = await load(PACKAGE);

  test("images that are none", async () => {
    const garbage = picture("questions.json");
    await refused(model.generate(garbage, PROMPT), "input", /cannot be decoded .*expected an image file/);
    await refused(model.generate(/** @type {any} */ ("shapes.png"), PROMPT), "input", /the image is string; expected/);
    await refused(model.generate({ data: [], width: 1, height: 1 }, PROMPT), "input", /an object of Object; expected/);
    const short = { data: new Uint8Array(5), width: 1, height: 1 };
    await refused(model.generate(short, PROMPT), "input", /1 x 1 pixels and 5 values; expected uint8/);
    const empty = { data: new Uint8Array(), width: 0, height: 0 };
    await refused(model.generate(empty, PROMPT), "input", /0 x 0 pixels; expected at least one/);
    const long = { data: new Uint8Array(4), width: 70_000, height: 1 };
    await refused(model.generate(long, PROMPT), "input", /70000 x 1 pixels; expected at most .* make it smaller/);
  });

  test("prompts that cannot be tokenised", async () => {
    await refused(model.generate(null, " "), "input", /the prompt is empty; ask something/);
    await refused(model.generate(null, /** @type {any} */ (5)), "input", /of type number; expected a text/);
    await refused(model.generate(null, "a\ud800b"), "input", /unpaired surrogate at character 2/);
    const long = "shape ".repeat(3000);
    await refused(model.generate(null, long), "prompt-too-long", /the context holds 2048; shorten it by at least/);
  });

  test("options out of range", async () => {
    const ask = (/** @type {any} */ options) => model.generate(null, PROMPT, options);
    await refused(ask({ maxNewTokens: 0 }), "input", /maxNewTokens is 0; expected an integer of 1 or more/);
    await refused(ask({ temperature: NaN }), "input", /temperature is null; expected 0 or more/);
    await refused(ask({ topP: 0 }), "input", /topP is 0; expected above 0/);
    await refused(ask({ stop: "." }), "input", /stop is "."; expected a list of texts/);
    await refused(ask({ max_new_tokens: 5 }), "input", /max_new_tokens is no option; expected one of maxNewTokens/);
  });

  test("to answer once it is closed, and finishes what runs", async () => {
    const other = await load(PACKAGE);
    const chat = other.chat();
    const running = other.encodeImage(picture("shapes.png"));
    await running;
    await other.close();
    await other.close();
    await refused(other.generate(null, PROMPT), "input", /the model is closed; load it again/);
    await refused(chat.ask(PROMPT), "input", /the model is closed/);
    assert.equal((await model.generate(picture("shapes.png"), PROMPT)).text, ANSWER);
  });
});
