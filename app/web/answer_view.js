// One answer of the model as a person sees it: thoughts, text, draft, calls, figures and replay.

import { drafted, finishedBlocks } from "./answer.js";
import { stepFigures } from "./blocks.js";
import { drawCanvas, legend } from "./canvas_view.js";
import { button, copyButton, h, several, shown } from "./dom.js";
import { rendered } from "./markdown.js";
import { stepsPlot } from "./plots.js";
import { replayView } from "./replay_view.js";

/**
 * Shows an answer and follows it while it grows: call `showContent` or `showDraft` when one of them
 * has changed, and `showEnd` when it has ended. `actions` may hold buttons that follow its figures.
 */
export class AnswerView {
  constructor(answer) {
    this.answer = answer;
    this.rendered = new Map(); // the text that each element shows
    this.actions = h("span", { class: "actions" });
    this.thoughts = h("div", { class: "prose" });
    this.thinking = h("details", { class: "thinking", hidden: true }, h("summary"), this.thoughts);
    this.text = h("div", { class: "prose" });
    this.calls = h("div", { class: "calls" });
    this.progress = h("p", { class: "progress", "aria-hidden": "true" });
    this.foot = h("div", { class: "foot" });
    // Screen readers get the finished blocks only. A draft would never let them finish a sentence.
    this.canvas = h("span", { class: "canvas", "aria-hidden": "true" });
    this.element = h(
      "article",
      { class: "answer", "aria-label": "Answer" },
      this.thinking,
      this.text,
      this.calls,
      this.progress,
      this.foot,
    );
    this.showContent();
    if (answer.state !== "streaming") this.showEnd();
  }

  /** Show the finished blocks. The draft that became one of them goes. */
  showContent() {
    const { answer } = this;
    this.canvas.remove();
    this.canvas.replaceChildren();
    this.render(this.text, answer.text);
    this.render(this.thoughts, answer.thinking);
    this.calls.replaceChildren(...answer.calls.map(callView));
    this.showThinking();
    this.element.setAttribute("aria-busy", "true");
    this.progress.replaceChildren(waiting(answer));
  }

  /** Show a text in Markdown, unless it is shown already: its documents stay open. */
  render(element, text) {
    if (this.rendered.get(element) === text) return;
    element.replaceChildren(rendered(text));
    this.rendered.set(element, text);
  }

  /** Show how the answer ended, and its figures. */
  showEnd() {
    this.showContent();
    this.element.setAttribute("aria-busy", "false");
    this.progress.replaceChildren();
    this.foot.replaceChildren(...this.ending());
  }

  /** Show the draft of the next block where the block will stand. */
  showDraft() {
    const { answer, canvas } = this;
    const block = drafted(answer);
    drawCanvas(canvas, block.steps.at(-1), block.steps.at(-2));
    if (!canvas.isConnected) {
      const part = this.thinksNow() ? this.thoughts : this.text;
      lastLine(part).append(canvas);
      this.showThinking();
    }
    const { step } = block.steps.at(-1);
    const line = `Block ${answer.blocks.length}, step ${step}: `;
    this.progress.replaceChildren(line, stepFigures(block, block.steps.length - 1), legend());
  }

  /** Returns whether nothing but a thought has come, so that the draft belongs to it. */
  thinksNow() {
    const { thinking, text, calls } = this.answer;
    return thinking !== "" && text === "" && calls.length === 0;
  }

  showThinking() {
    const running = this.answer.state === "streaming" && this.thinksNow();
    this.thinking.hidden = this.answer.thinking === "";
    this.thinking.open = running || (this.thinking.open && this.answer.state !== "streaming");
    this.thinking.firstChild.textContent = running ? "Thinking …" : "Thoughts";
  }

  /** Returns what stands below an answer that has ended. */
  ending() {
    const { answer } = this;
    const blocks = finishedBlocks(answer);
    const replay = h("div");
    const open = button(
      "steps",
      "Steps",
      () => {
        const opened = replay.childElementCount > 0;
        replay.replaceChildren(...(opened ? [] : [replayView(blocks)]));
        open.setAttribute("aria-expanded", String(!opened));
        replay.scrollIntoView({ block: "nearest" });
      },
      { shown: true, "aria-expanded": "false" },
    );
    const line = h(
      "div",
      { class: "foot-line" },
      answer.figures &&
        h("p", { class: "figures" }, figures(answer), blocks.length > 1 && stepsPlot(blocks)),
      blocks.length > 0 && open,
      answer.text && copyButton("Copy the answer", answer.text),
      this.actions,
    );
    return [note(answer), line, replay].filter(Boolean);
  }
}

/** Returns what is shown while no draft is. */
function waiting(answer) {
  return answer.text || answer.thinking
    ? "The next block is being made …"
    : "Waiting for the first block …";
}

/** Returns the element of a finished text that its next words belong to. */
function lastLine(part) {
  const lines = [...part.querySelectorAll("p, li, h1, h2, h3, h4, h5, h6, pre > code")];
  const last = lines.at(-1);
  if (last && !last.matches("pre > code")) return last;
  return part.appendChild(h("p"));
}

function figures({ figures: made, tokens }) {
  const first = made.time_to_first_block_s;
  return [
    `${shown(made.tokens_per_second)} tokens/s`,
    `first block after ${first < 1 ? `${Math.round(1000 * first)} ms` : `${shown(first)} s`}`,
    several(tokens, "token"),
    ...(made.blocks === undefined
      ? []
      : [several(made.blocks, "block"), several(made.denoising_steps, "step")]),
  ].join(" · ");
}

/** Returns why an answer ended other than by itself, or null. */
function note({ state, error, finish, text, thinking, calls }) {
  if (state === "failed") return h("p", { class: "error", role: "alert" }, error);
  if (state === "stopped") return h("p", { class: "note" }, "You stopped this answer.");
  if (state === "streaming") return null;
  if (finish === "length")
    return h("p", { class: "note" }, "The answer reached the limit of tokens.");
  if (!text && !thinking && !calls.length) return h("p", { class: "note" }, "The answer is empty.");
  return null;
}

function callView({ name, arguments: given }) {
  let shownArguments = given;
  try {
    shownArguments = JSON.stringify(JSON.parse(given), null, 2);
  } catch {
    // The arguments of a call that was cut off are shown as they came.
  }
  return h(
    "div",
    { class: "call" },
    h("p", {}, "Calls the tool ", h("code", {}, name)),
    h("pre", { tabindex: "0" }, shownArguments),
  );
}
