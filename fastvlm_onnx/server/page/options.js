// How an answer is made: its length, the temperature, and its form (text, or JSON of a schema).

const SCHEMAS = {
  objects: {
    type: "object",
    properties: {
      objects: {
        type: "array",
        maxItems: 6,
        items: {
          type: "object",
          properties: { name: { type: "string", maxLength: 40 }, color: { type: "string", maxLength: 20 } },
          required: ["name", "color"],
          additionalProperties: false,
        },
      },
    },
    required: ["objects"],
    additionalProperties: false,
  },
  "yes-no": { enum: ["yes", "no", "not sure"] },
  text: {
    type: "object",
    properties: { has_text: { type: "boolean" }, text: { type: "string", maxLength: 200 } },
    required: ["has_text", "text"],
    additionalProperties: false,
  },
};

/** The fields of the answer's options, as `Session.options` takes them. */
export class OptionFields {
  #elements;

  /**
   * @param {{details: HTMLDetailsElement, note: HTMLElement, maxTokens: HTMLInputElement,
   *   temperature: HTMLInputElement, form: HTMLSelectElement, schemaFields: HTMLElement,
   *   schema: HTMLTextAreaElement, schemaError: HTMLElement}} elements
   * @param {(options: object) => void} onChange called with options that can be used
   */
  constructor(elements, onChange) {
    this.#elements = elements;
    const { details, form, schema, schemaFields } = elements;
    schema.value = JSON.stringify(SCHEMAS.objects, null, 2);
    for (const button of schemaFields.querySelectorAll("[data-schema]")) {
      button.addEventListener("click", () => {
        schema.value = JSON.stringify(SCHEMAS[button.dataset.schema], null, 2);
        this.#changed(onChange);
      });
    }
    details.addEventListener("input", () => this.#changed(onChange));
    form.addEventListener("change", () => this.#changed(onChange));
    this.#changed(onChange);
  }

  #changed(onChange) {
    const { note, maxTokens, temperature, form, schemaFields } = this.#elements;
    schemaFields.hidden = form.value !== "json_schema";
    const inRange = [maxTokens, temperature].every((field) => field.reportValidity());
    const responseFormat = this.#responseFormat();
    const unusual = [
      maxTokens.value !== "240" && `${maxTokens.value} tokens`,
      temperature.value !== "0" && `temperature ${temperature.value}`,
      form.value !== "text" && form.selectedOptions[0].text,
    ];
    note.textContent = unusual.filter(Boolean).join(", ");
    if (!inRange || responseFormat === undefined) return;
    onChange({
      maxTokens: maxTokens.valueAsNumber,
      temperature: temperature.valueAsNumber,
      responseFormat,
    });
  }

  /** null for text; undefined where the schema is no JSON object, which the field's error says. */
  #responseFormat() {
    const { form, schema, schemaError } = this.#elements;
    schemaError.textContent = "";
    schema.removeAttribute("aria-invalid");
    if (form.value === "text") return null;
    if (form.value === "json_object") return { type: "json_object" };
    try {
      const parsed = JSON.parse(schema.value);
      if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
        throw new Error("a schema is an object in braces");
      }
      return { type: "json_schema", json_schema: { name: "answer", strict: true, schema: parsed } };
    } catch (error) {
      schemaError.textContent = `This is not a schema: ${error.message}. The last valid one is used.`;
      schema.setAttribute("aria-invalid", "true");
      return undefined;
    }
  }
}
