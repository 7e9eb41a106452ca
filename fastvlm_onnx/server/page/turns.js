// Turns on the page: questions and answers about the present picture, and the history.

import { element, icon } from "./elements.js";

const ENDS = {
  length: "cut at the longest answer",
  stopped: "stopped",
  failed: "failed",
};
const AT_END_PIXELS = 40;

/** The facts below an answer, in words. */
function foot(turn) {
  const { predicted_n: tokens, predicted_ms: milliseconds, cache_n: cached } = turn.timings;
  return [
    turn.ttft !== null && `TTFT ${Math.round(turn.ttft)} ms`,
    tokens > 1 && milliseconds > 0 && `${Math.round((1000 * tokens) / milliseconds)} tokens/s`,
    cached > 0 && `${cached} tokens reused`,
    ENDS[turn.ended],
  ].filter(Boolean);
}

/** An answer in JSON, indented; the answer as it is where it is no JSON. */
function indented(answer) {
  try {
    return JSON.stringify(JSON.parse(answer), null, 2);
  } catch {
    return answer;
  }
}

function thumbnail(turn) {
  const image = element("img");
  turn.picture.showIn(image);
  return image;
}

/** The list of the present picture's turns. Text that was selected stays selected as text comes. */
export class TurnList {
  #list;
  #shown = []; // {turn, item, text, facts, copy}

  /** @param {HTMLElement} list */
  constructor(list) {
    this.#list = list;
  }

  /**
   * @param {import("./session.js").Turn[]} turns
   * @param {boolean} scrolls bring a new turn into view, and its text as long as its end is in view
   */
  show(turns, scrolls) {
    const isFollowed = scrolls && (turns.length > this.#shown.length || this.#endsInView());
    const isKept = turns.length > 0 && turns[0] === this.#shown[0]?.turn;
    // In a series the answer before stays until the next begins, so that nothing flickers.
    const isWaiting = turns.length === 1 && turns[0].answer === "" && turns[0].ended === "";
    if (!isKept && isWaiting && this.#shown.length === 1 && this.#shown[0].turn.ended) {
      this.#shown[0].item.classList.add("waiting");
      return;
    }
    if (!isKept) {
      this.#shown = [];
      this.#list.replaceChildren();
    }
    for (const turn of turns.slice(this.#shown.length)) this.#add(turn);
    for (const shown of this.#shown) this.#update(shown);
    if (isFollowed) this.#shown.at(-1)?.item.scrollIntoView({ block: "nearest" });
  }

  #endsInView() {
    const bottom = (node) => node.getBoundingClientRect().bottom;
    const last = this.#shown.at(-1)?.item;
    return last && bottom(last) < Math.min(bottom(this.#list), innerHeight) + AT_END_PIXELS;
  }

  #add(turn) {
    const text = document.createTextNode("");
    const answer = element(turn.isStructured ? "pre" : "p", { className: "answer" }, text);
    const facts = element("span");
    const copy = element("button", { className: "icon small", title: "Copy the answer" }, icon("copy"));
    copy.setAttribute("aria-label", "Copy the answer");
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(text.data);
      copy.setAttribute("aria-label", "Copied");
      copy.title = "Copied";
    });
    const footer = element("div", { className: "foot" }, facts, copy);
    const question = element("p", { className: "question", textContent: turn.question });
    const item = element("article", { className: "turn" }, question, answer, footer);
    if (this.#shown.length === 0) item.prepend(thumbnail(turn));
    this.#list.append(item);
    this.#shown.push({ turn, item, text, facts, copy });
  }

  #update({ turn, text, facts, copy }) {
    const isWhole = turn.isStructured && turn.ended === "stop";
    const now = isWhole ? indented(turn.answer) : turn.answer;
    if (now.startsWith(text.data)) text.appendData(now.slice(text.data.length));
    else text.data = now;
    facts.textContent = foot(turn).join(" · ");
    copy.hidden = turn.ended === "" || turn.answer === "";
  }
}

/**
 * The history's list; a click shows a turn again.
 *
 * @param {import("./session.js").Turn[]} turns
 * @param {(turn: import("./session.js").Turn) => void} onChoose
 */
export function historyEntries(turns, onChoose) {
  return turns.map((turn) => {
    const facts = [turn.time.toLocaleTimeString(), turn.question, ...foot(turn)].join(" · ");
    const button = element(
      "button",
      { onclick: () => onChoose(turn) },
      thumbnail(turn),
      element("span", { textContent: turn.answer || "(no answer)" }),
      element("span", { className: "note", textContent: facts }),
    );
    return element("li", {}, button);
  });
}

/** The history as a JSON file. */
export async function historyFile(turns) {
  const entries = await Promise.all(
    turns.map(async ({ picture, question, answer, time, ttft, ended, timings }) => ({
      time: time.toISOString(),
      question,
      answer,
      ended,
      ttft_ms: ttft,
      timings,
      image: await picture.dataUrl(),
    })),
  );
  return new File([JSON.stringify(entries, null, 2)], "fastvlm-answers.json", {
    type: "application/json",
  });
}
