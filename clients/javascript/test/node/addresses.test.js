import assert from "node:assert/strict";
import path from "node:path";
import { test } from "node:test";

import { load } from "fastvlm-onnx";

import { UrlFiles } from "../../src/files/url.js";
import { serveFolders } from "../file_server.js";
import { PACKAGE, copyOfPackage, damage } from "../fixtures.js";

const WEIGHTS = "decoder.fp32.onnx.data";

test("files at an address come whole, and tell their progress", async (context) => {
  const { url, requests } = await serveFolders(context, { "/package/": PACKAGE });
  /** @type {import("../../src/files/files.js").Progress[]} */
  const progress = [];
  const onProgress = (/** @type {import("../../src/files/files.js").Progress} */ one) => progress.push(one);
  // An address may lack its last slash.
  const files = await UrlFiles.open(new URL(`${url}/package`), { onProgress });
  const { bytes } = files.manifest.files[WEIGHTS];
  const [content, again] = await Promise.all([files.read(WEIGHTS), files.read(WEIGHTS)]);
  assert.equal(content, again);
  assert.equal(content.length, bytes);
  assert.equal(progress[progress.length - 1].loadedBytes, bytes);
  assert.deepEqual(requests, ["fastvlm.json", WEIGHTS]);
});

test("a file that comes half, altered or not at all is refused", async (context) => {
  const folder = await copyOfPackage(context);
  const { url, halved } = await serveFolders(context, { "/package/": folder });
  const reading = async (at = "/package/") => (await UrlFiles.open(new URL(url + at), {})).read(WEIGHTS);
  halved.add(WEIGHTS);
  const half = new RegExp(`/${WEIGHTS} did not come whole .*; check the connection`);
  await assert.rejects(reading(), { name: "FastVLMError", code: "download", message: half });
  halved.clear();
  await damage(path.join(folder, WEIGHTS));
  const altered = new RegExp(`${WEIGHTS} is not the file that was exported`);
  await assert.rejects(reading(), { name: "FastVLMError", code: "package", message: altered });
  const missing = /the server answered 404 for .*\/elsewhere\/fastvlm.json; expected a file of a package/;
  await assert.rejects(reading("/elsewhere/"), { name: "FastVLMError", code: "download", message: missing });
});

test("an address that does not answer is refused", async () => {
  const message = /http:\/\/127.0.0.1:9\/fastvlm.json did not come whole/;
  const opening = UrlFiles.open(new URL("http://127.0.0.1:9/"), {});
  await assert.rejects(opening, { name: "FastVLMError", code: "download", message });
});

test("a download ends where its signal aborts", async (context) => {
  const { url } = await serveFolders(context, { "/package/": PACKAGE });
  const controller = new AbortController();
  const options = { onProgress: () => controller.abort(), signal: controller.signal };
  const files = await UrlFiles.open(new URL(`${url}/package/`), options);
  await assert.rejects(files.read(WEIGHTS), { name: "AbortError" });
});

test("load takes a folder in Node, and no address", async () => {
  const message = /https:\/\/example.org\/package: an address, expected a folder in Node; download it first/;
  await assert.rejects(load("https://example.org/package"), { name: "FastVLMError", code: "input", message });
  assert.equal((await load(new URL(`file://${PACKAGE}`))).variant, "fast");
});
