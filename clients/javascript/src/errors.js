/**
 * An error that the caller can do something about. The message says what was found, what was
 * expected and what to do.
 */
export class FastVLMError extends Error {
  /**
   * @param {ErrorCode} code
   * @param {string} message
   * @param {{cause?: unknown}} [options]
   */
  constructor(code, message, options) {
    super(message, options);
    this.name = "FastVLMError";
    /**
     * The kind of the error.
     *
     * @type {ErrorCode}
     */
    this.code = code;
  }
}

/**
 * - `package`: a file of the package is missing, altered or of another format.
 * - `download`: a file could not be downloaded whole.
 * - `input`: an image, a prompt or an option cannot be used, or the model is closed.
 * - `prompt-too-long`: the prompt leaves no room in the context.
 * - `engine`: ONNX Runtime is missing, lacks the device, cannot open a graph, or failed.
 *
 * @typedef {"package" | "download" | "input" | "prompt-too-long" | "engine"} ErrorCode
 */

/**
 * The message of any thrown value, on one line.
 *
 * @param {unknown} error
 */
export function inOneLine(error) {
  const message = error instanceof Error ? error.message : String(error);
  return message.replace(/\s+/g, " ").trim();
}
