import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { parseGolden, preprocess } from "fastvlm-onnx";

import { Sampler } from "../../src/decoder/sampler.js";
import { isSafe } from "../../src/decoder/lm_head.js";
import { embedBodyWeights } from "../../src/engine/embed_weights.js";
import { probe } from "../../src/engine/saturation.js";
import { readPixels } from "../../src/image/read_node.js";
import { checkOptions } from "../../src/options.js";
import { AnswerText } from "../../src/text/answer_text.js";
import { NEEDS_GOLDEN, PACKAGE, PICTURES, goldenText, imageOf } from "../fixtures.js";

const CLIENT = fileURLToPath(new URL("../../", import.meta.url));
const REPOSITORY = path.join(CLIENT, "../..");
const run = promisify(execFile);

describe("an answer's text", () => {
  // Tokens of one byte each.
  const tokenizer = /** @type {any} */ ({ bytesOf: (/** @type {number} */ id) => Uint8Array.of(id) });
  const shown = (/** @type {string | Uint8Array} */ text, /** @type {string[]} */ stop = []) => {
    const answer = new AnswerText(tokenizer, stop);
    const bytes = typeof text === "string" ? new TextEncoder().encode(text) : text;
    const pieces = Array.from(bytes, (byte) => answer.add(byte));
    pieces.push(answer.finish());
    assert.equal(pieces.join(""), answer.text);
    return { pieces, text: answer.text };
  };

  test("holds a character back until its last byte", () => {
    assert.deepEqual(shown("é!").pieces, ["", "é", "!", ""]);
    assert.equal(shown(Uint8Array.of(0x61, 0xe2, 0x82)).text, "a\ufffd");
  });

  test("keeps a byte order mark, and loses white space at its ends as Python does", () => {
    assert.equal(shown("\ufeffa\ufeff").text, "\ufeffa\ufeff");
    assert.deepEqual(shown(" \x1ca b\x85\n").pieces, ["", "", "a", "", " b", "", "", "", ""]);
  });

  test("ends before the first stop text, and holds back what may begin it", () => {
    assert.equal(shown("one two three", ["three", "two"]).text, "one");
    assert.deepEqual(shown("aab", ["ab"]).pieces, ["", "a", "", ""]);
    assert.equal(shown("aa", ["ab"]).text, "aa");
  });
});

describe("sampling", () => {
  const logits = (/** @type {number[]} */ ...values) => ({ values: Float32Array.from(values), ids: null });
  const drawn = (/** @type {any} */ options, /** @type {any} */ from, count = 4000) => {
    const sampler = new Sampler(checkOptions({ seed: 1, ...options }));
    const counts = new Array(from.values.length).fill(0);
    for (let i = 0; i < count; i++) counts[sampler.draw(from)] += 1 / count;
    return counts;
  };
  const even = logits(0, Math.log(2), Math.log(5));

  test("takes the first of the largest logits without a temperature", () => {
    assert.deepEqual(drawn({}, logits(1, 3, 3), 1), [0, 1, 0]);
    const screened = { values: Float32Array.of(3, 1, 3), ids: BigInt64Array.of(9n, 4n, 2n) };
    assert.equal(new Sampler(checkOptions({})).draw(screened), 2);
  });

  test("draws in proportion to the probabilities at a temperature", () => {
    const near = (/** @type {number[]} */ found, /** @type {number[]} */ expected) =>
      found.forEach((share, i) => assert.ok(Math.abs(share - expected[i]) < 0.03, `${found}`));
    near(drawn({ temperature: 1 }, even), [1 / 8, 2 / 8, 5 / 8]);
    near(drawn({ temperature: 0.5 }, even), [1 / 30, 4 / 30, 25 / 30]);
    near(drawn({ temperature: 1, topK: 2 }, even), [0, 2 / 7, 5 / 7]);
    near(drawn({ temperature: 1, topP: 0.6 }, even), [0, 0, 1]);
    near(drawn({ temperature: 1, topP: 0.63 }, even), [0, 2 / 7, 5 / 7]);
    near(drawn({ temperature: 1, minP: 0.39 }, even), [0, 2 / 7, 5 / 7]);
    near(drawn({ temperature: 1, topK: 1 }, logits(4, 4, 0)), [1 / 2, 1 / 2, 0]); // a tie stays in
    near(drawn({ temperature: 1e-9 }, even), [0, 0, 1]);
  });

  test("a repetition penalty makes the tokens of the answer less probable", () => {
    const sampler = new Sampler(checkOptions({ repetitionPenalty: 2 }));
    const from = logits(3, 2, -1);
    assert.deepEqual([sampler.draw(from), sampler.draw(from), sampler.draw(from)], [0, 1, 0]);
  });
});

test("a screen is certain only where no other token can have the largest logit", () => {
  const rough = Float32Array.of(9, 5, 1);
  assert.equal(isSafe(Float32Array.of(9.1, 5, 1), rough), true);
  assert.equal(isSafe(Float32Array.of(9.1, 7, 1), rough), false);
});

test("weights inside a node's graph are put into the graph, and other bytes stay", async () => {
  const { graphs } = JSON.parse(await readFile(path.join(PACKAGE, "fastvlm.json"), "utf-8"));
  const embedded = async (/** @type {string} */ name) => {
    const weights = new Map();
    for (const file of graphs[name].weights) weights.set(file, await readFile(path.join(PACKAGE, file)));
    const model = await readFile(path.join(PACKAGE, name));
    return { model, weights, changed: embedBodyWeights(model, weights) };
  };
  const decoder = await embedded("decoder.fp32.onnx");
  assert.equal(decoder.changed, decoder.model);
  const vision = await embedded("vision_encoder.256.int8.onnx");
  // At 256 pixels, only the stem's strips are a body of their own; its weights take 2 kB.
  assert.ok(vision.changed.length > vision.model.length + 2000);
  assert.throws(() => embedBodyWeights(vision.model, new Map()), { code: "package", message: /which are not there/ });
  assert.throws(() => embedBodyWeights(vision.model.subarray(0, 999), vision.weights), { message: /is cut or damaged/ });
});

test("pixel_values are those of Python at every size", NEEDS_GOLDEN, async () => {
  for (const [name, picture] of Object.entries(parseGolden(goldenText()).pictures)) {
    const file = Buffer.from(picture.rgb_png ?? picture.file, "base64");
    const pixels = await readPixels(imageOf(file));
    for (const [size, expected] of Object.entries(picture.pixel_values_sha256)) {
      const values = preprocess(pixels, Number(size));
      const found = createHash("sha256").update(new Uint8Array(values.buffer)).digest("hex");
      assert.equal(found, expected, `${name} at ${size}`);
    }
  }
});

test("a picture of one row and 60,000 columns is resized in little memory", () => {
  const data = new Uint8Array(3 * 60_000).fill(255);
  const values = preprocess({ data, width: 60_000, height: 1, channels: 3 }, 256);
  // The line is 1/234 of a pixel high.
  const brightest = values.reduce((most, value) => Math.max(most, value), 0);
  assert.ok(brightest > 0 && brightest < 3 / 255, `${brightest}`);
});

test("the probe of int8 products is the Python runtime's", async () => {
  const file = await readFile(path.join(REPOSITORY, "runtime/ort/saturation_probe.onnx"));
  assert.deepEqual(Buffer.from(probe()), file);
});

test("the version is that of the Python package", async () => {
  const { version } = JSON.parse(await readFile(path.join(CLIENT, "package.json"), "utf-8"));
  const python = await readFile(path.join(REPOSITORY, "fastvlm_onnx/version.py"), "utf-8");
  const [, expected] = /** @type {RegExpExecArray} */ (/"([\d.]+)/.exec(python));
  assert.equal(version.replace(/-.*/, ""), expected.replace(/\.$/, ""));
});

test("onnxruntime's telemetry is off unless the caller wants it", async () => {
  const { ORT_DISABLE_TELEMETRY: _, ...env } = process.env;
  const script = (/** @type {object} */ options) => `
    import { load } from "fastvlm-onnx";
    await load(process.argv[1], ${JSON.stringify(options)});
    console.log(process.env.ORT_DISABLE_TELEMETRY ?? "as it is");
  `;
  const found = async (/** @type {object} */ options) => {
    const args = ["--input-type=module", "--eval", script(options), PACKAGE];
    return (await run(process.execPath, args, { cwd: CLIENT, env })).stdout.trim();
  };
  assert.equal(await found({}), "1");
  assert.equal(await found({ telemetry: true }), "as it is");
});

test("the README's example runs", async (context) => {
  const readme = await readFile(path.join(CLIENT, "README.md"), "utf-8");
  const [, example] = /** @type {RegExpExecArray} */ (/```js node\n(.*?)```/s.exec(readme));
  const script = path.join(CLIENT, `.readme-${process.pid}.mjs`);
  context.after(() => import("node:fs").then(({ rmSync }) => rmSync(script)));
  await writeFile(
    script,
    example.replace('"demo-onnx"', JSON.stringify(PACKAGE)).replace('"shapes.png"', JSON.stringify(`${PICTURES}shapes.png`)),
  );
  const { stdout } = await run(process.execPath, [script], { cwd: CLIENT });
  const [, expected] = /** @type {RegExpExecArray} */ (/```text\n(.*?)```/s.exec(readme));
  assert.equal(stdout, expected);
});
