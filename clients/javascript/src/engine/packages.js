// The packages that browsers need, by name. No other module for browsers names a package, so a page
// without a bundler puts another module in this place.

export { Tokenizer } from "@huggingface/tokenizers";

/**
 * @param {"wasm" | "webgpu"} device
 * @returns {Promise<typeof import("onnxruntime-common")>}
 */
export const importOnnxruntime = (device) =>
  device === "webgpu" ? import("onnxruntime-web/webgpu") : import("onnxruntime-web/wasm");
