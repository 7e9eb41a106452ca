// Answer the questions of questions.json with transformers.js, in Node or in a page.

import {
  AutoModelForImageTextToText,
  AutoProcessor,
  env,
  RawImage,
} from "@huggingface/transformers";

/**
 * @param {string} root folder or address that holds the model's folder
 * @param {string} name the model's folder
 * @param {string} dtype "fp32", "int8" or "q4"
 * @param {Record<string, string[]>} prompts questions by the path or address of a picture
 * @param {string} [wasmPaths] address of onnxruntime-web's files, in a page
 * @returns {Promise<Record<string, string[]>>} the answers, in the same order
 */
export async function answer(root, name, dtype, prompts, wasmPaths) {
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = root;
  if (wasmPaths) env.backends.onnx.wasm.wasmPaths = wasmPaths;
  const processor = await AutoProcessor.from_pretrained(name);
  const model = await AutoModelForImageTextToText.from_pretrained(name, { dtype });
  const answers = {};
  for (const [picture, questions] of Object.entries(prompts)) {
    const image = await RawImage.read(picture);
    answers[picture] = [];
    for (const text of questions) {
      const messages = [{ role: "user", content: [{ type: "image" }, { type: "text", text }] }];
      const prompt = processor.apply_chat_template(messages, { add_generation_prompt: true });
      const inputs = await processor(image, prompt, { add_special_tokens: false });
      const outputs = await model.generate({ ...inputs, max_new_tokens: 100 });
      const tokens = outputs.slice(null, [inputs.input_ids.dims.at(-1), null]);
      answers[picture].push(processor.batch_decode(tokens, { skip_special_tokens: true })[0]);
    }
  }
  return answers;
}

if (globalThis.process?.argv) {
  const { readFileSync } = await import("node:fs");
  const [root, name, dtype, file] = process.argv.slice(2);
  const answers = await answer(root, name, dtype, JSON.parse(readFileSync(file, "utf8")));
  console.log(JSON.stringify(answers));
}
