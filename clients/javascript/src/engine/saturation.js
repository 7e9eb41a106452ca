// On x86 processors with AVX2 and without VNNI, ONNX Runtime's product of uint8 activations and int8
// weights saturates at 16 bits. A graph opened with `session.x64quantprecision` is exact there, and
// slow on other processors, so a probe decides.

/** @import * as Ort from "onnxruntime-common" */

// runtime/ort/saturation_probe.onnx before and after its weights: a product of uint8 [4, 64] and
// int8 [64, 32], all of them 127.
const BEFORE_WEIGHTS =
  "CAoSDGZhc3R2bG0tb25ueDrvEAodCgFhCgZ3ZWlnaHQSAXkiDU1hdE11bEludGVnZXISEHNhdHVyYXRpb25fcHJvYmUqkRAI" +
  "QAggEANCBndlaWdodEqAEA==";
const AFTER_WEIGHTS = "WhMKAWESDgoMCAISCAoCCAQKAghAYhMKAXkSDgoMCAYSCAoCCAQKAgggQgQKABAV";
const [ROWS, INNER, COLUMNS] = [4, 64, 32];
const WEIGHT = 127;
const ACTIVATION = 255;

/**
 * @param {typeof Ort} ort
 * @returns {Promise<boolean>} this processor's products saturate.
 */
export async function int8ProductsSaturate(ort) {
  const options = { intraOpNumThreads: 1, logSeverityLevel: /** @type {const} */ (3) };
  const session = await ort.InferenceSession.create(probe(), options);
  const activations = new Uint8Array(ROWS * INNER).fill(ACTIVATION);
  const { y } = await session.run({ a: new ort.Tensor("uint8", activations, [ROWS, INNER]) });
  await session.release();
  return /** @type {Int32Array} */ (y.data).some((sum) => sum !== INNER * WEIGHT * ACTIVATION);
}

/** @returns {Uint8Array} the graph, an ONNX file */
export function probe() {
  const weights = new Uint8Array(INNER * COLUMNS).fill(WEIGHT);
  return Uint8Array.from([...bytesOf(BEFORE_WEIGHTS), ...weights, ...bytesOf(AFTER_WEIGHTS)]);
}

/** @param {string} base64 */
const bytesOf = (base64) => Array.from(atob(base64), (character) => character.charCodeAt(0));
