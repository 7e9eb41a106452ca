// What a page and its worker say to each other. Each call has an id, which its replies repeat.

/** @import { ErrorCode } from "../errors.js" */
/** @import { GenerationOptions } from "../options.js" */
/** @import { LoadOptions } from "../load.js" */
/** @import { Piece } from "../answer.js" */

/**
 * @typedef {{source: any} | {features: Float32Array}} SentImage
 *
 * @typedef {{id: number, call: "load", address: string, options: LoadOptions}
 *   | {id: number, call: "encode", image: any, options: {orient?: boolean}}
 *   | {id: number, call: "stream", chat: number|null, image: SentImage[]|null, prompt: string,
 *      options: GenerationOptions}
 *   | {id: number, call: "chat" | "reset", chat: number}
 *   | {id: number, call: "restore", chat: number,
 *      turns: {prompt: string, image: SentImage[], answer: string}[]}
 *   | {id: number, call: "abort"}} Request
 *
 * @typedef {object} Reply
 * @property {number} id
 * @property {any} [progress] more replies follow
 * @property {Piece} [piece] more replies follow
 * @property {unknown} [value] the call has ended
 * @property {{name: string, message: string, code: ErrorCode|null}} [error] the call has failed
 */

export {};
