// Chromium with a page that can import the client.

import { accessSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

import { serveFolders } from "../file_server.js";
import { PACKAGE, PICTURES } from "../fixtures.js";

const CLIENT = fileURLToPath(new URL("../../", import.meta.url));
const MODULES = path.join(CLIENT, "node_modules");
const EXECUTABLE = process.env.CHROMIUM ?? "/usr/bin/chromium";

/** Options of a test that needs Chromium. */
export const NEEDS_CHROMIUM = { skip: isThere(EXECUTABLE) ? false : `${EXECUTABLE} is not installed` };

/** Flags under which Chromium computes WebGPU without a GPU, by SwiftShader. */
export const SWIFTSHADER = [
  "--enable-unsafe-webgpu",
  "--use-webgpu-adapter=swiftshader",
  "--enable-features=Vulkan",
];

/**
 * @param {import("node:test").TestContext | {after: (close: () => void) => void}} context
 * @param {{isIsolated?: boolean, args?: string[], package?: string}} [options] isIsolated: pages may
 *   use threads; args: flags of Chromium
 */
export async function openPage(context, { isIsolated = false, args = ["--disable-gpu"], package: folder = PACKAGE } = {}) {
  const server = await serveFolders(context, {
    "/": path.join(CLIENT, "test/browser/page/"),
    "/fastvlm/": path.join(CLIENT, "src/"),
    "/fastvlm/engine/packages.js": path.join(CLIENT, "page/packages.js"),
    "/vendor/onnxruntime-web/": path.join(MODULES, "onnxruntime-web/dist/"),
    "/vendor/tokenizers.mjs": path.join(MODULES, "@huggingface/tokenizers/dist/tokenizers.min.mjs"),
    "/package/": folder,
    "/pictures/": PICTURES,
  }, { isIsolated });
  // No timeouts: a busy machine takes its time, and a browser that dies ends the waiting.
  const timeout = 0;
  const browser = await chromium.launch({ executablePath: EXECUTABLE, args: ["--no-sandbox", ...args], timeout });
  context.after(() => browser.close());
  const page = await browser.newPage();
  await page.goto(`${server.url}/`, { timeout });
  return { page, server };
}

/** @param {string} file */
function isThere(file) {
  try {
    accessSync(file);
    return true;
  } catch {
    return false;
  }
}
