// Keeps the screen on while pictures are watched.

export class WakeLock {
  #wanted = false;
  #lock = null;

  constructor() {
    // A browser releases the lock of a hidden page.
    document.addEventListener("visibilitychange", () => this.#acquire());
  }

  get isHeld() {
    return this.#lock !== null;
  }

  async want(wanted) {
    if (this.#wanted === wanted) return;
    this.#wanted = wanted;
    if (wanted) await this.#acquire();
    else await this.#lock?.release();
  }

  async #acquire() {
    if (!this.#wanted || this.#lock || document.visibilityState !== "visible") return;
    try {
      const lock = await navigator.wakeLock.request("screen");
      this.#lock = lock;
      lock.addEventListener("release", () => (this.#lock = null));
      if (!this.#wanted) await lock.release();
    } catch {
      // The page works without it: an old browser, or a battery that is nearly empty.
    }
  }
}
