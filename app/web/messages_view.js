// The messages of a conversation as a person sees them.

import { AnswerView } from "./answer_view.js";
import { openCalls, shownAnswer } from "./conversation.js";
import { arrange, button, h } from "./dom.js";

const DEMO = [
  "Count to 50",
  "Name the months of the year",
  "Sort these numbers: 9 3 7",
  "What can you do?",
];
const ANY = [
  "Explain block diffusion in three sentences.",
  "Write one HTML page with a bouncing ball.",
  "Write a Python function that finds prime numbers, and explain it.",
];

// The views of answers and of a person's messages, which stay as they are when others come.
const views = new WeakMap();

/**
 * Show all messages of a conversation in `element`. `on` has what a person can ask for: `send`,
 * `edit`, `again`, `choose` and `result`. Returns the view of the last answer, or undefined.
 */
export function showMessages(element, conversation, model, on) {
  const { messages } = conversation;
  if (!messages.length) {
    element.replaceChildren(welcome(model, on));
    return undefined;
  }
  const calls = openCalls(conversation);
  let last;
  const elements = messages.map((message, index) => {
    switch (message.role) {
      case "user":
        return kept(message, () => userView(message, (text) => on.edit(index, text)));
      case "tool":
        return h(
          "div",
          { class: "result" },
          h("p", {}, "Result of the tool"),
          h("pre", { tabindex: "0" }, message.text),
        );
      case "assistant": {
        const isLast = index === messages.length - 1;
        const answer = shownAnswer(message);
        last = kept(answer, () => new AnswerView(answer));
        last.actions.replaceChildren(...answerActions(message, isLast, on));
        return last.element;
      }
    }
  });
  const results =
    calls.length > 0 &&
    shownAnswer(messages.findLast((each) => each.role === "assistant")).state === "done";
  arrange(element, [...elements, ...(results ? [resultForm(calls[0], on)] : [])]);
  return last;
}

function kept(subject, make) {
  if (!views.has(subject)) views.set(subject, make());
  return views.get(subject);
}

function welcome(model, on) {
  const canvas = model?.canvas_length;
  const several = model?.id === "demo" ? DEMO : ANY;
  return h(
    "div",
    { class: "welcome" },
    h("h1", {}, "What shall we write?"),
    h(
      "p",
      {},
      `This model does not type word by word. It begins with ${canvas ? `${canvas} random tokens` : "random tokens"} and `,
      "refines all of them at once, until they stand still: one block of the answer. Watch it.",
    ),
    h(
      "div",
      { class: "suggestions" },
      several.map((text) =>
        h(
          "button",
          { type: "button", class: "suggestion", onclick: () => on.send(text, []) },
          text,
        ),
      ),
    ),
  );
}

function userView(message, onedit) {
  const body = h("div", { class: "user-text" }, message.text);
  const edit = button("edit", "Edit this message", () => {
    view.replaceChildren(editForm(message.text, onedit, () => view.replaceChildren(...parts)));
    view.querySelector("textarea").focus();
  });
  const images = message.images.map((url) => h("img", { src: url, alt: "Attached image" }));
  const parts = [
    h(
      "div",
      { class: "bubble" },
      images.length > 0 && h("div", { class: "pictures" }, images),
      body,
    ),
    edit,
  ];
  const view = h("article", { class: "user", "aria-label": "You" }, parts);
  return view;
}

function editForm(text, onsave, oncancel) {
  const input = h("textarea", { rows: 2, "aria-label": "Edited message" });
  input.value = text;
  const save = (event) => {
    event.preventDefault();
    if (input.value.trim()) onsave(input.value);
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      oncancel();
    }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) save(event);
  });
  return h(
    "form",
    { class: "edit", onsubmit: save },
    input,
    h(
      "div",
      {},
      h("button", { class: "button primary" }, "Send again"),
      h("button", { type: "button", class: "button", onclick: oncancel }, "Cancel"),
    ),
  );
}

function answerActions(message, isLast, on) {
  const count = message.answers.length;
  const failed = shownAnswer(message).state === "failed";
  const turn = (by) => on.choose(message, message.shown + by);
  const choice = [
    button("left", "Previous answer", () => turn(-1), { disabled: message.shown === 0 }),
    h("span", { class: "count" }, `${message.shown + 1} of ${count}`),
    button("right", "Next answer", () => turn(1), { disabled: message.shown === count - 1 }),
  ];
  const again = button("again", failed ? "Retry" : "Another answer", on.again, { shown: failed });
  return [...(count > 1 ? choice : []), ...(isLast ? [again] : [])];
}

function resultForm(call, on) {
  const input = h("textarea", {
    rows: 2,
    "aria-label": `Result of ${call.name}`,
    placeholder: "What the tool returns",
  });
  const send = (event) => {
    event.preventDefault();
    on.result(call, input.value);
  };
  return h(
    "form",
    { class: "result", onsubmit: send },
    h("p", {}, "Result of ", h("code", {}, call.name)),
    input,
    h("button", { class: "button primary" }, "Send the result"),
  );
}
