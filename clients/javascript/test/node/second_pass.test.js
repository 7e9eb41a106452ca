import assert from "node:assert/strict";
import { test } from "node:test";

import { FastVLMError, load } from "fastvlm-onnx";

import { changeManifest, copyOfPackage } from "../fixtures.js";

const [ALWAYS, NEVER] = [1e9, -1];

/**
 * Logits after each token of an answer.
 *
 * @param {string} folder
 * @param {string} variant
 */
async function logitsOfSteps(folder, variant) {
  const model = await load(folder, { variant });
  const { tokenizer, decoder, embedding } = model.components;
  const cache = decoder.newCache();
  await decoder.run(embedding.embed(tokenizer.encode("What is in the picture?")), cache, false);
  const steps = [];
  for (const token of tokenizer.encode("a red circle and a blue square")) {
    const { values } = await decoder.run(embedding.embed([token]), cache, false);
    steps.push(values.slice());
  }
  cache.dispose();
  await model.close();
  return steps;
}

/** @param {Float32Array[]} found @param {Float32Array[]} expected the largest difference of each step */
const differences = (found, expected) =>
  found.map((step, i) => Math.max(...step.map((logit, id) => Math.abs(logit - expected[i][id]))));

test("a step that is not sure has the logits of the prefill graph", async (context) => {
  const folder = await copyOfPackage(context);
  const int8 = await logitsOfSteps(folder, "int8");
  const found = [];
  for (const margin of [ALWAYS, NEVER]) {
    await changeManifest(folder, (manifest) => (manifest.variants.fast.second_pass.margin = margin));
    found.push(differences(await logitsOfSteps(folder, "fast"), int8));
  }
  const [always, never] = found;
  // The prefill graph and int8 share their weights, but for a rounding in lm_head.
  assert.ok(Math.max(...always) < 0.15, `${always}`);
  assert.ok(Math.min(...never) > 0.2, `${never}`);
});

for (const [key, value] of /** @type {[string, unknown][]} */ ([
  ["margin", "wide"],
  ["margin", null],
  ["positions", 1.5],
  ["positions", -1],
])) {
  test(`a manifest whose second_pass.${key} is ${JSON.stringify(value)} is refused`, async (context) => {
    const folder = await copyOfPackage(context);
    await changeManifest(folder, (manifest) => (manifest.variants.fast.second_pass[key] = value));
    await assert.rejects(load(folder, { variant: "fast" }), (error) => {
      assert.ok(error instanceof FastVLMError);
      assert.match(error.message, new RegExp(`variants\\.fast\\.second_pass\\.${key} is `));
      return true;
    });
  });
}
