// The picture that is asked about: live from the camera, a file, or the drawing.

import { Camera } from "./camera.js";
import { Drawing } from "./drawing.js";
import { PageError } from "./errors.js";
import { pictureOfFile } from "./picture.js";

/**
 * Events: "change" (another source, another picture, frozen or live), "settled" (a still picture is
 * there or has changed, and nothing moves).
 */
export class Stage extends EventTarget {
  #picture = null; // of a file
  #drawn = null; // promise of the drawing's picture, until the drawing's next change
  #frozen = null; // a frame of the camera that stands in place of the live picture

  /**
   * @param {HTMLVideoElement} video
   * @param {HTMLCanvasElement} canvas
   */
  constructor(video, canvas) {
    super();
    this.camera = new Camera(video);
    this.drawing = new Drawing(canvas);
    /** @type {"camera"|"file"|"drawing"} */
    this.source = "camera";
    /** Longer side of a picture in pixels; the model's input where that is larger. */
    this.maxSide = 1024;
    this.camera.addEventListener("change", () => this.#tell("change"));
    this.drawing.addEventListener("change", () => {
      this.#drawn = null;
      this.#tell("change");
    });
    this.drawing.addEventListener("settled", () => this.#tell("settled"));
  }

  /** The picture shown moves: the camera is on, and no frame stands in its place. */
  get isLive() {
    return this.source === "camera" && this.camera.isOn && !this.isFrozen;
  }

  /** A frame of the camera stands in place of the live picture. */
  get isFrozen() {
    return this.#frozen !== null;
  }

  /** There is something to ask about. */
  get hasPicture() {
    if (this.source === "camera") return this.camera.isOn || this.isFrozen;
    return this.source === "drawing" ? !this.drawing.isEmpty : this.#picture !== null;
  }

  choose(source) {
    if (this.source === source) return;
    this.source = source;
    this.#picture = this.#drawn = this.#frozen = null;
    if (source !== "camera") this.camera.stop();
    this.#tell("change");
  }

  /** The picture that stands in place of the live one, or the file's; null where there is none. */
  get shown() {
    return this.#frozen ?? this.#picture;
  }

  /** Show a file's picture. @throws {PageError} it is no image. */
  async open(file) {
    this.show(await pictureOfFile(file, this.maxSide));
  }

  /** @param {import("./picture.js").Picture} picture shown as if it were a file's */
  show(picture) {
    this.choose("file");
    this.#picture = picture;
    this.#tell("change");
    this.#tell("settled");
  }

  freeze(picture) {
    if (this.source !== "camera" || this.#frozen === picture) return;
    this.#frozen = picture;
    this.#tell("change");
  }

  goLive() {
    this.#frozen = null;
    this.#tell("change");
  }

  /**
   * The picture to ask about now.
   *
   * @throws {PageError} there is none yet.
   */
  async take() {
    if (this.source === "camera") return this.#frozen ?? this.camera.frame(this.maxSide);
    if (!this.hasPicture) {
      throw new PageError(
        this.source === "file" ? "Choose a picture first." : "Draw something first.",
      );
    }
    return this.#picture ?? (this.#drawn ??= this.drawing.picture(this.maxSide));
  }

  /**
   * The next picture of a series: the newest frame, or a still picture that differs from the last.
   *
   * @param {import("./picture.js").Picture|null} last
   * @param {AbortSignal} signal
   * @returns {Promise<{picture: import("./picture.js").Picture, started: number}>} started: when its
   *   preprocessing began
   */
  async next(last, signal) {
    for (;;) {
      signal.throwIfAborted();
      if (this.isLive && document.visibilityState === "visible") {
        await this.camera.newFrame();
        const started = performance.now();
        if (this.isLive) return { picture: await this.camera.frame(this.maxSide), started };
      } else if (this.source !== "camera" && this.hasPicture && this.drawing.isSettled) {
        const started = performance.now();
        const picture = await this.take();
        if (picture !== last) return { picture, started };
      }
      await this.#somethingNew(signal);
    }
  }

  #somethingNew(signal) {
    const sources = [
      [signal, "abort"],
      [this, "change"],
      [this, "settled"],
      [document, "visibilitychange"],
    ];
    return new Promise((resolve) => {
      const listening = new AbortController();
      const end = () => {
        listening.abort();
        resolve();
      };
      for (const [target, name] of sources) {
        target.addEventListener(name, end, { signal: listening.signal });
      }
    });
  }

  #tell(event) {
    this.dispatchEvent(new Event(event));
  }
}
