// The two dialogs: the options of a conversation, and the API key.

import { hasKey, setKey } from "./api.js";
import { tools } from "./conversation.js";
import { button, h, several } from "./dom.js";

/** Show a dialog until it is closed. Returns whether it was confirmed. */
function confirmed(dialog) {
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "confirm");
    });
  });
}

function dialogHead(dialog, title) {
  return h(
    "div",
    { class: "dialog-head" },
    h("h2", {}, title),
    button("close", "Close", () => dialog.close()),
  );
}

function field(label, control, hint) {
  return h(
    "label",
    { class: "field" },
    h("span", {}, label),
    control,
    hint && h("small", {}, hint),
  );
}

/** Let a person change a conversation's options. Returns the new options, or null if they stay. */
export async function askOptions(options, model) {
  const number = (name, more) =>
    h("input", { type: "number", value: options[name], placeholder: "default", ...more });
  const system = h("textarea", { rows: 4, autofocus: true });
  system.value = options.system;
  const temperature = number("temperature", { min: 0, max: 2, step: "any" });
  const maxTokens = number("maxTokens", { min: 1, step: 1 });
  const seed = number("seed", { step: 1, placeholder: "random" });
  const quality = h(
    "select",
    {},
    ["", "exact", "balanced", "fast"].map((each) =>
      h("option", { value: each, selected: each === options.quality }, each || "default"),
    ),
  );
  const thinking = h("input", { type: "checkbox", checked: options.thinking });
  const offered = h("textarea", { rows: 4, class: "mono", spellcheck: "false" });
  offered.value = options.tools;
  const read = () => ({
    system: system.value,
    temperature: temperature.value,
    maxTokens: maxTokens.value,
    seed: seed.value,
    quality: quality.value,
    thinking: thinking.checked,
    tools: offered.value,
  });
  offered.addEventListener("input", () => {
    let fault = "";
    try {
      tools(read());
    } catch (error) {
      fault = `The tools are no JSON list of functions: ${error.message}`;
    }
    offered.setCustomValidity(fault);
  });
  const dialog = h("dialog", { class: "drawer", "aria-label": "Options" });
  const form = h(
    "form",
    { method: "dialog" },
    dialogHead(dialog, "Options of this chat"),
    field("System prompt", system),
    h(
      "div",
      { class: "columns" },
      field("Temperature", temperature, "0 to 2. 1 is the checkpoint's own schedule."),
      field("Most tokens", maxTokens),
      field("Seed", seed, "The same seed gives the same answer."),
    ),
    field(
      "Quality",
      quality,
      "How soon a block is final. Below exact, blocks take fewer steps and may have more mistakes.",
    ),
    h("label", { class: "check" }, thinking, "Let the model think first"),
    field(
      "Tools",
      offered,
      "A JSON list of functions with name, description and parameters. You write the results of calls.",
    ),
    h("button", { class: "button primary", value: "confirm" }, "Use these options"),
    model && h("p", { class: "about" }, describe(model)),
  );
  dialog.append(form);
  return (await confirmed(dialog)) ? read() : null;
}

function describe({ id, context_length: context, canvas_length: canvas, input_modalities: takes }) {
  if (context === null) return `${id} is being loaded.`;
  const lengths = `a context of ${several(context, "token")} and writes blocks of up to ${several(canvas, "token")}`;
  return `${id} has ${lengths}. It reads ${takes.includes("image") ? "text and images" : "text"}.`;
}

/** Ask for an API key and keep it. `message` says what is wrong with the present one, if any. */
export async function askKey(message) {
  const key = h("input", {
    type: "password",
    required: true,
    autofocus: true,
    autocomplete: "off",
  });
  const remember = h("input", { type: "checkbox" });
  const dialog = h("dialog", { "aria-label": "API key" });
  dialog.append(
    h(
      "form",
      { method: "dialog" },
      dialogHead(dialog, "This server needs an API key"),
      hasKey() && h("p", { class: "error" }, message),
      field("API key", key),
      h("label", { class: "check" }, remember, "Remember it in this browser"),
      h("button", { class: "button primary", value: "confirm" }, "Use this key"),
    ),
  );
  const given = await confirmed(dialog);
  if (given) setKey(key.value.trim(), remember.checked);
  return given;
}
