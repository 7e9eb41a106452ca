import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { GoldenCheck, load, parseGolden } from "fastvlm-onnx";

import { ANSWER, NEEDS_GOLDEN, PACKAGE, PROMPT, QUESTIONS, VARIANTS, goldenText, imageOf, picture } from "../fixtures.js";

for (const variant of VARIANTS) {
  describe(variant, async () => {
    const model = await load(PACKAGE, { variant });

    test("answers every question about the sample pictures as Python does", async () => {
      for (const [name, questions] of Object.entries(QUESTIONS)) {
        const features = await model.encodeImage(picture(name));
        for (const [prompt, expected] of Object.entries(questions)) {
          const { text, finishReason } = await model.generate(features, prompt);
          assert.deepEqual([text, finishReason], [expected, "stop"], `${name}: ${prompt}`);
        }
      }
    });

    test("agrees with the golden answers", NEEDS_GOLDEN, async () => {
      const check = new GoldenCheck(model, parseGolden(goldenText()), imageOf);
      assert.deepEqual(await check.differences(), []);
    });
  });
}

test("golden answers notice swapped colors, a stretched picture and a lost line break", NEEDS_GOLDEN, async () => {
  const golden = parseGolden(goldenText());
  const noticed = async (/** @type {(model: any) => void} */ spoil) => {
    const model = await load(PACKAGE, { variant: "fp32" });
    spoil(model.components);
    const differences = await new GoldenCheck(model, golden, imageOf).differences();
    await model.close();
    return differences.length > 0;
  };
  const swapped = (/** @type {any} */ components) => {
    const { readPixels } = components;
    components.readPixels = async (/** @type {any} */ image) => {
      const pixels = await readPixels(image);
      const data = pixels.data.map((/** @type {number} */ _, /** @type {number} */ i) =>
        pixels.data[i - (i % 3) + 2 - (i % 3)]);
      return { ...pixels, data };
    };
  };
  const stretched = (/** @type {any} */ components) => {
    const { readPixels } = components;
    components.readPixels = (/** @type {any} */ image) => readPixels(image.resize(64, 64, { fit: "fill" }));
  };
  const joined = (/** @type {any} */ components) => {
    const { template } = components;
    const prompt = template.prompt.bind(template);
    template.prompt = (/** @type {number} */ images, /** @type {string} */ text) => {
      const parts = prompt(images, text);
      return images === 0 ? parts : [parts[0], parts[1], parts[2].slice(1)];
    };
  };
  assert.equal(await noticed(() => {}), false);
  assert.equal(await noticed(swapped), true);
  assert.equal(await noticed(stretched), true);
  assert.equal(await noticed(joined), true);
});

describe("a model", async () => {
  const model = await load(PACKAGE);

  test("takes the fastest variant of the CPU", () => {
    assert.deepEqual([model.variant, model.device, model.imageSize], ["fast", "cpu", 256]);
  });

  test("streams pieces that join to the answer", async () => {
    const pieces = [];
    for await (const piece of model.stream(picture("shapes.png"), PROMPT)) pieces.push(piece);
    const { generation } = pieces[pieces.length - 1];
    assert.ok(pieces.length > 3);
    assert.equal(pieces.map(({ text }) => text).join(""), ANSWER);
    assert.equal(generation?.text, ANSWER);
    assert.deepEqual(pieces.flatMap(({ tokenIds }) => tokenIds), generation?.tokenIds);
  });

  test("answers two questions at once", async () => {
    const asked = ["shapes.png", "shapes-wide.jpg"].map((name) => model.generate(picture(name), PROMPT));
    const texts = (await Promise.all(asked)).map(({ text }) => text);
    assert.deepEqual(texts, [ANSWER, QUESTIONS["shapes-wide.jpg"][PROMPT]]);
  });

  test("takes RGB and RGBA pixels", async () => {
    const { data, info } = await picture("shapes.png").removeAlpha().raw().toBuffer({ resolveWithObject: true });
    const { width, height } = info;
    const rgba = Uint8Array.from({ length: 4 * width * height }, (_, i) =>
      i % 4 === 3 ? 7 : data[3 * Math.floor(i / 4) + (i % 4)]);
    for (const pixels of [data, rgba]) {
      const { text } = await model.generate({ data: pixels, width, height }, PROMPT);
      assert.equal(text, ANSWER);
    }
  });

  test("stops at a stop text, which may span tokens, and at the largest number of tokens", async () => {
    const image = await model.encodeImage(picture("shapes.png"));
    const stopped = await model.generate(image, PROMPT, { stop: ["t, a p"] });
    assert.deepEqual([stopped.text, stopped.finishReason], ["An orange hear", "stop"]);
    const cut = await model.generate(image, PROMPT, { maxNewTokens: 3 });
    assert.deepEqual([cut.tokenIds.length, cut.finishReason], [3, "length"]);
    assert.ok(ANSWER.startsWith(cut.text));
  });

  test("draws the same tokens from the same seed", async () => {
    const image = await model.encodeImage(picture("shapes.png"));
    const options = { temperature: 3, topK: 0, seed: 5, maxNewTokens: 20 };
    const [one, two] = [await model.generate(image, PROMPT, options), await model.generate(image, PROMPT, options)];
    const other = await model.generate(image, PROMPT, { ...options, seed: 6 });
    assert.deepEqual(one.tokenIds, two.tokenIds);
    assert.notDeepEqual(one.tokenIds, other.tokenIds);
  });

  test("ends an answer where its signal aborts", async () => {
    const controller = new AbortController();
    const answering = async () => {
      for await (const { text } of model.stream(picture("shapes.png"), PROMPT, { signal: controller.signal })) {
        if (text) controller.abort();
      }
    };
    await assert.rejects(answering(), { name: "AbortError" });
    assert.equal((await model.generate(picture("shapes.png"), PROMPT)).text, ANSWER);
  });
});

test("the cache grows within an answer, and keeps what it holds", async () => {
  const model = await load(PACKAGE, { variant: "fp32" });
  const { decoder, embedding, template } = model.components;
  const logitsOf = async (/** @type {number} */ positions) => {
    const cache = decoder.newCache();
    cache.reserve(positions);
    const capacities = new Set();
    const logits = [];
    for (const id of [...template.prompt(0, PROMPT).flat(), ...Array(200).keys()]) {
      logits.push(...(await decoder.run(embedding.embed([Number(id)]), cache, true)).values);
      capacities.add(cache.capacity);
    }
    return { logits, growths: capacities.size - 1 };
  };
  const [growing, whole] = [await logitsOf(0), await logitsOf(300)];
  assert.deepEqual([growing.growths, whole.growths], [3, 0]);
  assert.ok(growing.logits.every((logit, i) => logit === whole.logits[i]));
  await model.close();
});

describe("a conversation", async () => {
  const model = await load(PACKAGE, { variant: "fp32" });
  const followUp = "Tell me how many stars are there.";

  test("keeps earlier turns, an answer that was left included", async () => {
    const chat = model.chat();
    const first = await chat.ask(PROMPT, picture("shapes.png"));
    for await (const { text } of chat.stream(PROMPT)) if (text) break;
    const third = await chat.ask(followUp);
    assert.deepEqual([first.text, third.text], [ANSWER, "There is one star."]);
    assert.equal(chat.turns.length, 3);
    assert.ok(chat.turns[1].tokenIds.length < chat.turns[0].tokenIds.length);
    // The cache holds what a new conversation with the same turns would.
    const positions = chat.turns.flatMap(({ parts }) => parts).reduce((sum, part) =>
      sum + (Array.isArray(part) ? part.length : part.length / 128), 0);
    assert.ok(third.promptTokens > positions);
  });

  test("stays as it was after a question that aborts before its prompt has run", async () => {
    const chat = model.chat();
    await chat.ask(PROMPT, picture("shapes.png"));
    const aborted = chat.ask(followUp, null, { signal: AbortSignal.abort() });
    await assert.rejects(aborted, { name: "AbortError" });
    assert.equal(chat.turns.length, 1);
    assert.equal((await chat.ask(followUp)).text, "There is one star.");
  });

  test("refuses a second question while it answers", async () => {
    const chat = model.chat();
    const first = chat.ask(PROMPT, picture("shapes.png"));
    await assert.rejects(chat.ask(followUp), { name: "FastVLMError", code: "input", message: /is answering/ });
    assert.equal((await first).text, ANSWER);
  });
});
