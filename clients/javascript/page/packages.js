// The packages that a page without a bundler needs, beside it. `--layout web-page` puts this module
// in the place of src/engine/packages.js.

export { Tokenizer } from "../../vendor/tokenizers.mjs";

/** @param {"wasm" | "webgpu"} device */
export const importOnnxruntime = (device) =>
  device === "webgpu"
    ? import("../../vendor/onnxruntime-web/ort.webgpu.min.mjs")
    : import("../../vendor/onnxruntime-web/ort.wasm.min.mjs");
