// Token embeddings: rows of an .npy matrix, read by id.

import { FastVLMError } from "../errors.js";
import { scaleFile } from "../manifest.js";

/** @import { DecoderFormat } from "../manifest.js" */
/** @import { OpenFile, PackageFiles } from "../files/files.js" */

// A uint8 value v stands for (v - 128) * scale, with the scale of its block.
const INT8_ZERO = 128;
const LONGEST_HEADER = 10_000;
// Rows that are kept as float32: 4 MB at a width of 1,024. A template's rows come back with each
// question, and frequent tokens within an answer.
const KEPT_ROWS = 1024;

export class TokenEmbedding {
  #rows;
  #scales;
  #hiddenSize;
  /** @type {Map<number, Float32Array>} */
  #kept = new Map();

  /**
   * @param {Matrix} rows
   * @param {Matrix|null} scales
   * @param {number} hiddenSize
   */
  constructor(rows, scales, hiddenSize) {
    this.#rows = rows;
    this.#scales = scales;
    this.#hiddenSize = hiddenSize;
  }

  /**
   * @param {PackageFiles} files
   * @param {string} name
   * @param {DecoderFormat} sizes
   * @throws {FastVLMError} the file holds no embeddings of these sizes.
   */
  static async open(files, name, sizes) {
    const rows = await Matrix.open(files, name);
    const isInt8 = rows.type === "|u1";
    const scales = isInt8 ? await Matrix.open(files, scaleFile(name)) : null;
    const isWhole = scales
      ? rows.columns >= sizes.hidden_size && scales.rows === rows.rows &&
        scales.type === "<f4" && rows.columns % scales.columns === 0
      : rows.columns === sizes.hidden_size;
    if (!isWhole || rows.rows !== sizes.vocab_size) {
      throw new FastVLMError(
        "package",
        `${files.where}: ${name} holds ${rows.type} [${rows.rows}, ${rows.columns}], expected ` +
          `[${sizes.vocab_size}, ${sizes.hidden_size}]; export the package again.`,
      );
    }
    return new TokenEmbedding(rows, scales, sizes.hidden_size);
  }

  /**
   * @param {readonly number[]} ids
   * @returns {Float32Array} [ids.length, hidden_size]
   */
  embed(ids) {
    const embeddings = new Float32Array(ids.length * this.#hiddenSize);
    ids.forEach((id, i) => embeddings.set(this.#row(id), i * this.#hiddenSize));
    return embeddings;
  }

  /** @param {number} id @returns {Float32Array} [hidden_size] */
  #row(id) {
    let row = this.#kept.get(id);
    if (row === undefined) {
      row = this.#read(id);
      if (this.#kept.size === KEPT_ROWS) this.#kept.clear();
      this.#kept.set(id, row);
    }
    return row;
  }

  /** @param {number} id */
  #read(id) {
    const stored = this.#rows.row(id);
    if (this.#scales === null) return /** @type {Float32Array} */ (stored);
    const scales = this.#scales.row(id);
    const block = stored.length / scales.length;
    const row = new Float32Array(this.#hiddenSize);
    for (let i = 0; i < row.length; i++) {
      row[i] = (stored[i] - INT8_ZERO) * scales[Math.floor(i / block)];
    }
    return row;
  }

  close() {
    this.#rows.close();
    this.#scales?.close();
  }
}

/** A matrix in an .npy file, of which rows are read when they are used. */
class Matrix {
  #file;
  #begin;

  /**
   * @param {OpenFile} file
   * @param {number} begin offset of the first row
   * @param {keyof typeof TYPES} type
   * @param {number} rows
   * @param {number} columns
   */
  constructor(file, begin, type, rows, columns) {
    this.#file = file;
    this.#begin = begin;
    this.type = type;
    this.rows = rows;
    this.columns = columns;
  }

  /** @param {PackageFiles} files @param {string} name */
  static async open(files, name) {
    const file = await files.open(name);
    const matrix = Matrix.#parse(file);
    if (matrix === null) {
      file.close();
      throw new FastVLMError(
        "package",
        `${files.where}: ${name} is no matrix in numpy's format of float16, float32 or uint8; ` +
          "export the package again.",
      );
    }
    return matrix;
  }

  /** @param {OpenFile} file */
  static #parse(file) {
    const start = new DataView(copyOf(file.read(0, Math.min(10, file.size))));
    // Version 1 begins with "\x93NUMPY", 1, 0 and the header's length in two bytes.
    if (start.byteLength < 10 || start.getUint32(0) !== 0x934e554d || start.getUint8(6) !== 1) return null;
    const length = start.getUint16(8, true);
    if (length > LONGEST_HEADER || 10 + length > file.size) return null;
    const header = new TextDecoder("latin1").decode(file.read(10, 10 + length));
    const type = /'descr': *'([^']*)'/.exec(header)?.[1] ?? "";
    const shape = /'shape': *\((\d+), *(\d+)\)/.exec(header);
    if (!isType(type) || shape === null || !/'fortran_order': *False/.test(header)) return null;
    const [rows, columns] = [Number(shape[1]), Number(shape[2])];
    if (10 + length + rows * columns * TYPES[type] !== file.size) return null;
    return new Matrix(file, 10 + length, type, rows, columns);
  }

  /** @param {number} index */
  row(index) {
    const size = this.columns * TYPES[this.type];
    const begin = this.#begin + index * size;
    const bytes = this.#file.read(begin, begin + size);
    if (this.type === "|u1") return bytes;
    const buffer = bytes.byteLength === bytes.buffer.byteLength ? bytes.buffer : copyOf(bytes);
    return this.type === "<f4" ? new Float32Array(buffer) : Float32Array.from(new Uint16Array(buffer), fromHalf);
  }

  close() {
    this.#file.close();
  }
}

/** Sizes in bytes of numpy's types. */
const TYPES = { "<f4": 4, "<f2": 2, "|u1": 1 };

/** @param {string} type @returns {type is keyof typeof TYPES} */
const isType = (type) => Object.hasOwn(TYPES, type);

/** Bytes at an offset that any typed array can take. @param {Uint8Array} bytes */
const copyOf = (bytes) => Uint8Array.from(bytes).buffer;

/** The number that 16 bits of a float16 stand for. @param {number} bits */
function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
