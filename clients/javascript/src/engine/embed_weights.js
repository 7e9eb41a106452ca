// ONNX Runtime takes a graph's weights from memory, but not those of graphs inside a node, such as
// the body of a Scan: it looks for their file. So these weights are put into the graph itself.
//
// An ONNX file is a protocol buffer. Only the fields on the way to such weights are read; every other
// byte stays as it is. Source: onnx.proto of onnx 1.18.

import { FastVLMError } from "../errors.js";

/** Field numbers by message: `[field of a message]: the message inside`. */
const MODEL = { 7: "graph" };
const GRAPH = { 1: "node" };
const NODE = { 5: "attribute" };
const ATTRIBUTE = { 6: "body", 11: "body" };
const BODY = { 1: "node", 5: "tensor" };

/** @type {Record<string, Record<number, string>>} */
const MESSAGES = { model: MODEL, graph: GRAPH, node: NODE, attribute: ATTRIBUTE, body: BODY };

const RAW_DATA = 9;
const EXTERNAL_DATA = 13;
const DATA_LOCATION = 14;
const [VARINT, FIXED64, BYTES, FIXED32] = [0, 1, 2, 5];

/**
 * @param {Uint8Array} model content of an .onnx file
 * @param {ReadonlyMap<string, Uint8Array>} weights content of each file of weights
 * @returns {Uint8Array} the same model; `model` itself where it has no such weights
 * @throws {FastVLMError} the file is cut, or names weights that are not there.
 */
export function embedBodyWeights(model, weights) {
  const parts = rewritten(model, "model", weights);
  return parts === null ? model : joined(parts);
}

/**
 * @param {Uint8Array} message
 * @param {string} type
 * @param {ReadonlyMap<string, Uint8Array>} weights
 * @returns {Uint8Array[]|null} the message in parts; null where it stays as it is
 */
function rewritten(message, type, weights) {
  if (type === "tensor") return rewrittenTensor(message, weights);
  const parts = [];
  let isChanged = false;
  for (const { field, content, whole } of fieldsOf(message)) {
    const inner = MESSAGES[type][field];
    const changed = inner && content ? rewritten(content, inner, weights) : null;
    if (changed === null) {
      parts.push(whole);
    } else {
      isChanged = true;
      parts.push(...withHeader(field, changed));
    }
  }
  return isChanged ? parts : null;
}

/** @param {Uint8Array} tensor @param {ReadonlyMap<string, Uint8Array>} weights */
function rewrittenTensor(tensor, weights) {
  const parts = [];
  /** @type {Map<string, string>} */
  const place = new Map();
  for (const { field, content, whole } of fieldsOf(tensor)) {
    if (field === EXTERNAL_DATA && content) {
      const [key, value] = [...fieldsOf(content)].map((entry) => new TextDecoder().decode(entry.content));
      place.set(key, value ?? "");
    } else if (field !== DATA_LOCATION) {
      parts.push(whole);
    }
  }
  if (place.size === 0) return null;
  const file = place.get("location") ?? "";
  const offset = Number(place.get("offset") ?? 0);
  const content = weights.get(file);
  const end = place.has("length") ? offset + Number(place.get("length")) : content?.length ?? 0;
  if (!content || !(offset <= end && end <= content.length)) {
    throw new FastVLMError("package", `a graph reads bytes ${offset} to ${end} of ${file}, which are not there; export the package again.`);
  }
  return [...parts, ...withHeader(RAW_DATA, [content.subarray(offset, end)])];
}

/**
 * @param {Uint8Array} message
 * @returns {Generator<{field: number, content: Uint8Array|undefined, whole: Uint8Array}>} content: of a
 *   field of bytes; whole: the field with its header
 */
function* fieldsOf(message) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let factor = 1; at < message.length; factor *= 128) {
      const byte = message[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
    throw cut();
  };
  while (at < message.length) {
    const begin = at;
    const key = varint();
    const field = Math.floor(key / 8);
    const wireType = key % 8;
    let contentBegin = null;
    if (wireType === VARINT) varint();
    else if (wireType === FIXED64) at += 8;
    else if (wireType === FIXED32) at += 4;
    else if (wireType === BYTES) {
      const length = varint();
      contentBegin = at;
      at += length;
    } else throw cut();
    if (at > message.length) throw cut();
    const content = contentBegin === null ? undefined : message.subarray(contentBegin, at);
    yield { field, content, whole: message.subarray(begin, at) };
  }
}

const cut = () => new FastVLMError("package", "a graph's file is cut or damaged; export the package again.");

/** @param {number} field @param {Uint8Array[]} content @returns {Uint8Array[]} */
function withHeader(field, content) {
  const length = content.reduce((sum, part) => sum + part.length, 0);
  return [Uint8Array.from([...varintOf(8 * field + BYTES), ...varintOf(length)]), ...content];
}

/** @param {number} value */
function varintOf(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
  return [...bytes, value];
}

/** @param {Uint8Array[]} parts */
function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
