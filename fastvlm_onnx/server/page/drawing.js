// The drawing pad: strokes of a pointer or of the keyboard on white paper.

import { pictureOf } from "./picture.js";

// The colors that the built-in model knows, without white, which is the eraser.
export const COLORS = {
  red: "#e0262c",
  orange: "#f5841f",
  yellow: "#f6d21f",
  green: "#2a9d3a",
  blue: "#2257d4",
  purple: "#8632b8",
  pink: "#f582b4",
  brown: "#80481f",
  black: "#141414",
  gray: "#8c8c8c",
};
const PAPER = "#ffffff";
const KEY_STEP = 8;
const KEY_STEPS = {
  ArrowLeft: [-KEY_STEP, 0],
  ArrowRight: [KEY_STEP, 0],
  ArrowUp: [0, -KEY_STEP],
  ArrowDown: [0, KEY_STEP],
};
const SETTLED_MILLISECONDS = 500;

/** Events: "change" (a stroke came or went), "settled" (no change for half a second). */
export class Drawing extends EventTarget {
  #canvas;
  #context;
  #strokes = [];
  #stroke = null;
  #timer = 0;
  #cursor;
  #penIsDown = false;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    super();
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.#cursor = [canvas.width / 2, canvas.height / 2];
    this.color = COLORS.blue;
    this.width = 14;
    this.erases = false;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || this.#stroke) return;
      canvas.setPointerCapture(event.pointerId);
      this.#penIsDown = false;
      this.#begin(this.#place(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!canvas.hasPointerCapture(event.pointerId)) return;
      for (const one of event.getCoalescedEvents?.() ?? [event]) this.#extend(this.#place(one));
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => this.#end());
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => this.#end());
    this.#redraw();
  }

  get isEmpty() {
    return this.#strokes.length === 0;
  }

  get isSettled() {
    return this.#timer === 0;
  }

  undo() {
    this.#strokes.pop();
    this.#changed();
  }

  clear() {
    this.#strokes = [];
    this.#changed();
  }

  /** The drawing as a picture, without the keyboard's cursor. */
  async picture(maxSide) {
    const { width, height } = this.#canvas;
    this.#redraw(false);
    const taken = pictureOf(this.#canvas, width, height, maxSide, "Your drawing", "image/png");
    this.#redraw();
    return taken;
  }

  // --- strokes -----------------------------------------------------------------------------------

  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    const { width, height } = this.#canvas;
    return [
      ((event.clientX - box.left) / box.width) * width,
      ((event.clientY - box.top) / box.height) * height,
    ];
  }

  #begin(point) {
    const width = this.erases ? this.width * 3 : this.width;
    this.#stroke = { color: this.erases ? PAPER : this.color, width, points: [point] };
    this.#strokes.push(this.#stroke);
    this.#changed();
  }

  #extend(point) {
    this.#stroke?.points.push(point);
    this.#changed();
  }

  #end() {
    this.#stroke = null;
    this.#penIsDown = false;
    this.#redraw();
  }

  #key(event) {
    if (event.key === "Enter") {
      event.preventDefault();
      if (this.#penIsDown) return this.#end();
      this.#begin(this.#cursor);
      this.#penIsDown = true;
      return this.#redraw();
    }
    const step = KEY_STEPS[event.key];
    if (!step) return undefined;
    event.preventDefault();
    const [x, y] = this.#cursor;
    this.#cursor = [
      Math.min(this.#canvas.width, Math.max(0, x + step[0])),
      Math.min(this.#canvas.height, Math.max(0, y + step[1])),
    ];
    if (this.#penIsDown) this.#extend(this.#cursor);
    return this.#redraw();
  }

  #changed() {
    this.#redraw();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      this.dispatchEvent(new Event("settled"));
    }, SETTLED_MILLISECONDS);
    this.dispatchEvent(new Event("change"));
  }

  #redraw(withCursor = true) {
    const context = this.#context;
    context.fillStyle = PAPER;
    context.fillRect(0, 0, this.#canvas.width, this.#canvas.height);
    context.lineCap = context.lineJoin = "round";
    for (const { color, width, points } of this.#strokes) {
      context.strokeStyle = color;
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(...points[0]);
      for (const point of points) context.lineTo(...point);
      context.stroke();
    }
    if (withCursor && this.#canvas.matches(":focus-visible")) this.#drawCursor();
  }

  #drawCursor() {
    const [x, y] = this.#cursor;
    this.#context.strokeStyle = this.#penIsDown ? this.color : COLORS.gray;
    this.#context.lineWidth = 2;
    this.#context.beginPath();
    this.#context.arc(x, y, this.width / 2 + 4, 0, 2 * Math.PI);
    this.#context.stroke();
  }
}
