// The camera: its stream in a <video>, the choice of a camera, and a frame as a picture.

import { PageError } from "./errors.js";
import { pictureOf } from "./picture.js";

const CHOICE_ITEM = "fastvlm-onnx camera";

/** Events: "change" (started, stopped, another list of cameras), "lost" (the camera went away). */
export class Camera extends EventTarget {
  #video;
  #stream = null;
  #starting = null; // a mark of the latest start, which `stop` takes away

  /** @param {HTMLVideoElement} video */
  constructor(video) {
    super();
    this.#video = video;
    /** @type {MediaDeviceInfo[]} */
    this.devices = [];
    navigator.mediaDevices?.addEventListener("devicechange", () => this.#list());
  }

  get isOn() {
    return this.#stream !== null;
  }

  /** The id of the camera in use. */
  get deviceId() {
    return this.#stream?.getVideoTracks()[0].getSettings().deviceId ?? "";
  }

  /** The user let this page use a camera before. */
  async isAllowed() {
    try {
      return (await navigator.permissions.query({ name: "camera" })).state === "granted";
    } catch {
      return false; // Firefox does not tell.
    }
  }

  /**
   * Start a camera.
   *
   * @param {string} deviceId of `devices`; by default the one used last, or else the rear one
   * @throws {PageError|DOMException} no camera can be used; `inWords` says why.
   */
  async start(deviceId = "") {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new PageError(
        "A browser gives a camera to pages at https addresses and at localhost only. Open this page at one of them.",
      );
    }
    this.stop();
    const starting = (this.#starting = Symbol("start"));
    const stream = await this.#open(deviceId);
    if (this.#starting !== starting) {
      for (const track of stream.getTracks()) track.stop();
      return;
    }
    this.#stream = stream;
    stream.getVideoTracks()[0].addEventListener("ended", () => {
      if (this.#stream !== stream) return;
      this.stop();
      this.dispatchEvent(new Event("lost"));
    });
    this.#video.srcObject = stream;
    try {
      await this.#video.play();
    } catch (error) {
      if (this.#stream !== stream) return; // It was stopped before its first frame.
      throw error;
    }
    localStorage.setItem(CHOICE_ITEM, this.deviceId);
    await this.#list();
  }

  async #open(deviceId) {
    const size = { width: { ideal: 1280 }, height: { ideal: 960 } };
    const open = (which) =>
      navigator.mediaDevices.getUserMedia({ video: { ...size, ...which } });
    const lastUsed = localStorage.getItem(CHOICE_ITEM);
    const known = deviceId || lastUsed;
    if (!known) return open({ facingMode: { ideal: "environment" } });
    try {
      return await open({ deviceId: { exact: known } });
    } catch (error) {
      if (deviceId || error.name !== "OverconstrainedError") throw error;
      localStorage.removeItem(CHOICE_ITEM); // The camera used last is not connected.
      return this.#open("");
    }
  }

  /** Start the camera after the one in use. */
  async startNext() {
    const at = this.devices.findIndex(({ deviceId }) => deviceId === this.deviceId);
    await this.start(this.devices[(at + 1) % this.devices.length].deviceId);
  }

  stop() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = this.#starting = null;
    this.#video.srcObject = null;
    this.dispatchEvent(new Event("change"));
  }

  /**
   * The newest frame.
   *
   * @throws {PageError} the camera is off.
   */
  async frame(maxSide) {
    if (!this.isOn) throw new PageError("The camera is off. Start it first.");
    const { videoWidth, videoHeight } = this.#video;
    const time = new Date().toLocaleTimeString();
    return pictureOf(this.#video, videoWidth, videoHeight, maxSide, `Camera picture of ${time}`);
  }

  /** Wait for a frame that was not shown yet. */
  async newFrame() {
    if (!this.#video.requestVideoFrameCallback) return;
    const listening = new AbortController();
    await new Promise((resolve) => {
      this.#video.requestVideoFrameCallback(resolve);
      this.addEventListener("change", resolve, { signal: listening.signal });
    });
    listening.abort();
  }

  async #list() {
    const devices = await navigator.mediaDevices.enumerateDevices();
    this.devices = devices.filter(({ kind }) => kind === "videoinput");
    this.dispatchEvent(new Event("change"));
  }
}
