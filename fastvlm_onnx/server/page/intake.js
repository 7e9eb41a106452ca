// Files that come in: chosen, pasted, dropped.

import { byId } from "./elements.js";

/** @param {(file: File) => void} open called with each file */
export function connectIntake(open) {
  connectChooser(open);
  connectDrop(open);
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    open(file);
  });
}

function connectChooser(open) {
  const input = byId("file");
  for (const id of ["choose-file", "other-file"]) {
    byId(id).addEventListener("click", () => input.click());
  }
  input.addEventListener("change", () => {
    if (input.files.length > 0) open(input.files[0]);
    input.value = ""; // The same file may be chosen again.
  });
}

function connectDrop(open) {
  const view = byId("view");
  const hasFile = (event) => event.dataTransfer.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    view.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) view.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    view.classList.remove("dropping");
    if (!hasFile(event)) return;
    event.preventDefault();
    open(event.dataTransfer.files[0]);
  });
}
