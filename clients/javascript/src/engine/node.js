// onnxruntime-node.

import { FastVLMError, inOneLine } from "../errors.js";
import { Engine } from "./engine.js";

/** @import { LoadOptions } from "../load.js" */

/**
 * @param {LoadOptions} options
 * @throws {FastVLMError} onnxruntime-node is not installed, or the device is no device of Node.
 */
export async function openEngine({ device = "auto", threads, telemetry = false }) {
  if (device !== "auto" && device !== "cpu") {
    throw new FastVLMError("input", `the device is ${device}; expected auto or cpu in Node.`);
  }
  // onnxruntime-node from 1.29 on reports model, session and error events to Microsoft unless the
  // variable is set before its library is loaded.
  if (!telemetry) process.env.ORT_DISABLE_TELEMETRY ??= "1";
  let ort;
  try {
    ort = await import("onnxruntime-node");
  } catch (error) {
    throw new FastVLMError(
      "engine",
      `onnxruntime-node cannot be loaded (${inOneLine(error)}); run \`npm install onnxruntime-node\`.`,
      { cause: error },
    );
  }
  return new Engine(ort, "cpu", {
    executionProviders: ["cpu"],
    ...(threads === undefined ? {} : { intraOpNumThreads: threads }),
    logSeverityLevel: 3,
    enableMemPattern: false,
    // Graphs take turns: spinning workers of one would take a core from the next.
    extra: { session: { force_spinning_stop: "1" } },
  }, async () => {}); // A run leaves the thread free.
}
