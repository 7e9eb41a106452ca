// The prompt menu. A prompt has two parts: the question, and a suffix on the form of its answer.

const CHOICE_ITEM = "fastvlm-onnx prompt";
const CUSTOM_ITEM = "fastvlm-onnx custom prompt";
const CUSTOM = "custom";

// The first three are those of Apple's demo app (ml-fastvlm app/, commit 592b4ad).
const PROMPTS = {
  describe: {
    group: "Any picture",
    name: "Describe the picture",
    prompt: "Describe the image in English.",
    suffix: "Output should be brief, about 15 words or less.",
  },
  expression: {
    group: "Any picture",
    name: "Facial expression",
    prompt: "What is this person's facial expression?",
    suffix: "Output only one or two words.",
  },
  read: {
    group: "Any picture",
    name: "Read text",
    prompt: "What is written in this image?",
    suffix: "Output only the text in the image.",
  },
  shapes: {
    group: "Shapes and words, for the built-in model",
    name: "Describe the shapes",
    prompt: "Describe the image.",
    suffix: "",
  },
  word: {
    group: "Shapes and words, for the built-in model",
    name: "Read a word",
    prompt: "What does it say?",
    suffix: "",
  },
};

export class PromptMenu {
  #select;
  #fields;
  #prompt;
  #suffix;

  /** @param {{select: HTMLSelectElement, fields: HTMLElement, prompt: HTMLInputElement, suffix: HTMLInputElement}} elements */
  constructor({ select, fields, prompt, suffix }) {
    this.#select = select;
    this.#fields = fields;
    this.#prompt = prompt;
    this.#suffix = suffix;
    const groups = Map.groupBy(Object.entries(PROMPTS), ([, { group }]) => group);
    for (const [label, entries] of groups) {
      const group = document.createElement("optgroup");
      group.label = label;
      group.append(...entries.map(([id, { name }]) => new Option(name, id)));
      select.append(group);
    }
    const own = document.createElement("optgroup");
    own.label = "Your own";
    own.append(new Option("Customize…", CUSTOM));
    select.append(own);
    select.addEventListener("change", () => this.#choose(select.value));
    fields.addEventListener("input", () => this.#store());
    this.#show(localStorage.getItem(CHOICE_ITEM) ?? "describe");
  }

  /** The text to ask. */
  get text() {
    return `${this.#prompt.value.trim()} ${this.#suffix.value.trim()}`.trim();
  }

  /** The prompt for a model, as long as the user has chosen none. */
  suggest(model) {
    if (localStorage.getItem(CHOICE_ITEM) === null && model.id === "demo") this.#show("shapes");
  }

  #choose(id) {
    localStorage.setItem(CHOICE_ITEM, id);
    this.#show(id);
    if (id === CUSTOM) this.#prompt.focus();
  }

  /** Customize begins with the text that was customized last, or else with the prompt before. */
  #show(id) {
    const custom = JSON.parse(localStorage.getItem(CUSTOM_ITEM));
    const { prompt, suffix } = PROMPTS[id] ?? custom ?? this.#shown();
    this.#prompt.value = prompt;
    this.#suffix.value = suffix;
    this.#select.value = id in PROMPTS ? id : CUSTOM;
    this.#fields.hidden = id in PROMPTS;
  }

  #shown() {
    return { prompt: this.#prompt.value, suffix: this.#suffix.value };
  }

  #store() {
    localStorage.setItem(CUSTOM_ITEM, JSON.stringify(this.#shown()));
  }
}
