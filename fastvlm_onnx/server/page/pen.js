// The pen's buttons: colors, eraser, undo, clear.

import { COLORS } from "./drawing.js";
import { byId, element } from "./elements.js";

/** @param {import("./drawing.js").Drawing} drawing */
export function connectPen(drawing) {
  const eraser = byId("eraser");
  const setErases = (erases) => {
    drawing.erases = erases;
    eraser.setAttribute("aria-pressed", String(erases));
  };
  for (const [name, color] of Object.entries(COLORS)) {
    const input = element("input", { type: "radio", name: "color", value: name });
    input.checked = color === drawing.color;
    input.setAttribute("aria-label", name);
    input.addEventListener("change", () => {
      drawing.color = color;
      setErases(false);
    });
    const label = element("label", { title: name }, input);
    label.style.setProperty("--swatch", color);
    byId("colors").append(label);
  }
  eraser.addEventListener("click", () => setErases(!drawing.erases));
  byId("undo").addEventListener("click", () => drawing.undo());
  byId("clear").addEventListener("click", () => drawing.clear());
}
