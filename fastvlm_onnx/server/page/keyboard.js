// Keys that work wherever no control has the focus. index.html lists them in its info sheet.

import { byId } from "./elements.js";

const CONTROLS = "input, textarea, select, button, summary, canvas, a";

/** @param {{pressShutter: () => void, stop: () => void}} actions */
export function connectKeyboard({ pressShutter, stop }) {
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") stop();
    if (event.target.closest(CONTROLS)) return;
    if (event.key === " " && !byId("shutter").disabled) {
      event.preventDefault();
      pressShutter();
    } else if (event.key === "/") {
      event.preventDefault();
      byId("question").focus();
    }
  });
}
