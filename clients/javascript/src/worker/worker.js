// The worker's side of `loadInWorker`: it holds a model and its conversations.

import { FastVLMError } from "../errors.js";
import { ImageFeatures } from "../image/image_encoder.js";
import { load } from "../index.web.js";

/** @import { Chat } from "../chat.js" */
/** @import { FastVLM } from "../model.js" */
/** @import { Request, Reply, SentImage } from "./messages.js" */

/** @type {FastVLM|null} */
let model = null;
/** @type {Map<number, Chat>} */
const chats = new Map();
/** The calls that run. @type {Map<number, AbortController>} */
const running = new Map();

onmessage = async (/** @type {MessageEvent<Request>} */ { data: request }) => {
  if (request.call === "abort") {
    running.get(request.id)?.abort();
    return;
  }
  const controller = new AbortController();
  running.set(request.id, controller);
  try {
    const value = await answerTo(request, controller.signal);
    reply({ id: request.id, value });
  } catch (error) {
    reply({ id: request.id, error: described(error) });
  } finally {
    running.delete(request.id);
  }
};

/** @param {Reply} message */
const reply = (message) => postMessage(message);

/** @param {Exclude<Request, {call: "abort"}>} request @param {AbortSignal} signal @returns {Promise<unknown>} */
async function answerTo(request, signal) {
  const { id } = request;
  if (request.call === "load") {
    const onProgress = (/** @type {unknown} */ progress) => reply({ id, progress });
    model = await load(request.address, { ...request.options, onProgress, signal });
    const { manifest, variant, imageSize, device, deviceReason, loadMilliseconds } = model;
    return { manifest, variant, imageSize, device, deviceReason, loadMilliseconds };
  }
  const loaded = /** @type {FastVLM} */ (model);
  switch (request.call) {
    case "chat":
      chats.set(request.chat, loaded.chat());
      return null;
    case "reset":
      return chatOf(request.chat).reset();
    case "restore":
      return chatOf(request.chat).restore(
        request.turns.map((turn) => ({ ...turn, image: turn.image.map(received) })),
      );
    case "encode":
      return (await loaded.encodeImage(request.image, request.options)).data;
    case "stream": {
      const { image, prompt, chat } = request;
      const images = image?.map(received) ?? null;
      const options = { ...request.options, signal };
      const pieces = chat === null
        ? loaded.stream(images, prompt, options)
        : chatOf(chat).stream(prompt, images, options);
      for await (const piece of pieces) reply({ id, piece });
      return null;
    }
  }
}

/** @param {number} id */
const chatOf = (id) => /** @type {Chat} */ (chats.get(id));

/** @param {SentImage} image */
const received = (image) => ("features" in image ? new ImageFeatures(image.features) : image.source);

/** @param {unknown} error */
function described(error) {
  const { name, message } = error instanceof Error ? error : new Error(String(error));
  return { name, message, code: error instanceof FastVLMError ? error.code : null };
}
