// What Node and browsers both export.

export { Chat } from "./chat.js";
export { FastVLMError } from "./errors.js";
export { clearCache } from "./files/url.js";
export { GoldenCheck, parseGolden } from "./golden.js";
export { ImageFeatures } from "./image/image_encoder.js";
export { pixelValues as preprocess } from "./image/resize.js";
export { FastVLM } from "./model.js";
