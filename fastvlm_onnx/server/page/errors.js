// Errors that the page says in words.

/** A message for the user, and no fault of the page. */
export class PageError extends Error {}

/** An answer did not come. */
export class AnswerError extends PageError {
  /**
   * @param {"unreachable"|"loading"|"key"|"busy"|"picture gone"|"refused"|"failed"} kind
   * @param {string} message a sentence
   * @param {number} retrySeconds when to try again; 0 where the server does not say
   */
  constructor(kind, message, retrySeconds = 0) {
    super(message);
    this.kind = kind;
    this.retrySeconds = retrySeconds;
  }
}

const CAMERA_ERRORS = {
  NotAllowedError:
    "The browser does not let this page use a camera. Allow it beside the address, then start the camera again.",
  NotFoundError: "No camera was found. Connect one, or choose Picture or Draw.",
  NotReadableError: "Another program is using the camera. Close it, then start the camera again.",
  OverconstrainedError: "This camera is not there any more. Choose another one.",
};

/** @returns {string} a sentence for any error */
export function inWords(error) {
  if (error instanceof PageError) return error.message;
  return CAMERA_ERRORS[error.name] ?? `Something failed: ${error.message}`;
}
