// The built-in model, its pictures and its questions.

import { existsSync, readFileSync } from "node:fs";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

import sharp from "sharp";

import { GOLDEN_FILE } from "../src/golden.js";

const REPOSITORY = fileURLToPath(new URL("../../../", import.meta.url));
export const PICTURES = path.join(REPOSITORY, "fastvlm_onnx/demo/pictures/");
export const VARIANTS = ["fp32", "fp16", "int8", "web", "int4", "fast"];

const folder = process.env.FASTVLM_ONNX_TEST_VARIANTS;
if (!folder) {
  throw new Error(
    "FASTVLM_ONNX_TEST_VARIANTS is not set; run `make test-clients`, or name the folder of " +
      `\`fastvlm-onnx export demo --precision ${VARIANTS.join(",")}\`.`,
  );
}

/** A package of the built-in model with every variant. */
export const PACKAGE = path.resolve(folder);

/** @type {Record<string, Record<string, string>>} answers of the Python runtime by picture and prompt */
export const QUESTIONS = JSON.parse(readFileSync(path.join(PICTURES, "questions.json"), "utf-8"));

/** @param {string} name */
export const picture = (name) => sharp(path.join(PICTURES, name));

export const PROMPT = "Describe the image.";
export const ANSWER = QUESTIONS["shapes.png"][PROMPT];

const GOLDEN = path.join(PACKAGE, GOLDEN_FILE);

/** Content of the package's golden.json. */
export const goldenText = () => readFileSync(GOLDEN, "utf-8");

/** Options of a test that reads golden.json. */
export const NEEDS_GOLDEN = { skip: existsSync(GOLDEN) ? false : `${PACKAGE} has no ${GOLDEN_FILE}` };

/** @param {Uint8Array} bytes */
export const imageOf = (bytes) => sharp(bytes);

/**
 * A copy of the package that the test may damage.
 *
 * @param {import("node:test").TestContext} context deletes the copy at the test's end
 */
export async function copyOfPackage(context) {
  const copy = await mkdtemp(path.join(tmpdir(), "fastvlm-onnx-"));
  context.after(() => rm(copy, { recursive: true }));
  await cp(PACKAGE, copy, { recursive: true });
  return copy;
}

/** Flip the last bit of a file. @param {string} file */
export async function damage(file) {
  const content = await readFile(file);
  content[content.length - 1] ^= 1;
  await writeFile(file, content);
}

/** @param {string} folder @param {(manifest: any) => void} change */
export async function changeManifest(folder, change) {
  const file = path.join(folder, "fastvlm.json");
  const manifest = JSON.parse(await readFile(file, "utf-8"));
  change(manifest);
  await writeFile(file, JSON.stringify(manifest));
}
