// The dialogs: history, information, API key; and the choice of colors.

import { byId, element, relabel } from "./elements.js";
import { historyEntries, historyFile } from "./turns.js";

const THEME_ITEM = "fastvlm-onnx theme";
const THEMES = { auto: "Colors: as the system", light: "Colors: light", dark: "Colors: dark" };

// Facts of the server on its model, in the order shown.
const FACTS = {
  id: "Model",
  precision: "Precision",
  image_size: "Image size",
  num_image_tokens: "Tokens of an image",
  context_length: "Context",
  providers: "Runs on",
  version: "fastvlm-onnx",
};

export function connectDialogs() {
  for (const button of document.querySelectorAll("dialog [data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }
}

/**
 * @param {import("./session.js").Session} session
 */
export function connectHistory(session) {
  const dialog = byId("history");
  const show = () => {
    const reopen = (turn) => {
      dialog.close();
      session.reopen(turn);
    };
    byId("entries").replaceChildren(...historyEntries(session.history, reopen));
    const isEmpty = session.history.length === 0;
    byId("history-note").textContent = isEmpty
      ? "Answers will be listed here. They are kept in this tab until it is closed."
      : "Kept in this tab until it is closed, and nowhere else.";
    byId("save-history").disabled = byId("clear-history").disabled = isEmpty;
  };
  byId("open-history").addEventListener("click", () => {
    show();
    dialog.showModal();
  });
  byId("clear-history").addEventListener("click", () => {
    session.forget();
    show();
  });
  byId("save-history").addEventListener("click", async () => {
    const file = await historyFile(session.history);
    const url = URL.createObjectURL(file);
    element("a", { href: url, download: file.name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });
}

/** @param {{model: object|null}} client */
export function connectInfo(client) {
  byId("open-info").addEventListener("click", () => {
    const facts = client.model ?? {};
    const rows = Object.entries(FACTS).filter(([key]) => facts[key] !== undefined);
    byId("facts").replaceChildren(
      ...rows.flatMap(([key, label]) => [
        element("dt", { textContent: label }),
        element("dd", { textContent: factText(key, facts[key]) }),
      ]),
    );
    byId("info").showModal();
  });
}

function factText(key, value) {
  if (key === "image_size") return `${value} × ${value} pixels`;
  if (key === "context_length") return `${value} tokens`;
  if (key === "providers") {
    return [...new Set(Object.values(value))].join(", ").replaceAll("ExecutionProvider", "");
  }
  return String(value);
}

/** Ask for the key. @returns {Promise<boolean>} the user gave one. */
export function askForKey(client, message) {
  const dialog = byId("key-dialog");
  byId("key-text").textContent = `${message} This tab keeps it until it is closed.`;
  byId("key").value = client.key;
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    const listening = new AbortController();
    const end = (given) => {
      listening.abort();
      resolve(given);
    };
    const submitted = () => {
      client.key = byId("key").value.trim();
      end(true);
    };
    byId("key-form").addEventListener("submit", submitted, { signal: listening.signal });
    dialog.addEventListener("close", () => end(false), { signal: listening.signal });
  });
}

export function connectTheme() {
  const button = byId("theme");
  const names = Object.keys(THEMES);
  const show = (name) => {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    relabel(button, THEMES[name], name);
  };
  let name = names.find((one) => one === localStorage.getItem(THEME_ITEM)) ?? "auto";
  show(name);
  button.addEventListener("click", () => {
    name = names[(names.indexOf(name) + 1) % names.length];
    localStorage.setItem(THEME_ITEM, name);
    show(name);
  });
}
