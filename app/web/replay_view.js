// The replay of an answer's finished blocks: a slider over the steps, a plot, and what they mean.

import { explanation, stepFigures } from "./blocks.js";
import { drawCanvas, legend } from "./canvas_view.js";
import { button, h, several } from "./dom.js";
import { settledPlot } from "./plots.js";

const FRAME_MS = 450;

/** Returns the replay of these blocks, beginning with the one that took the most steps. */
export function replayView(blocks) {
  const most = Math.max(...blocks.map((block) => block.settled.length));
  const view = h("section", { class: "replay", "aria-label": "Steps of this answer" });
  showBlock(
    view,
    blocks,
    blocks.findIndex((block) => block.settled.length === most),
  );
  return view;
}

function showBlock(view, blocks, chosen) {
  const block = blocks[chosen];
  const canvas = h("p", {
    class: "canvas",
    tabindex: "0",
    role: "group",
    "aria-label": "The canvas",
  });
  const figures = h("output", { class: "figures" });
  const { plot, mark } = settledPlot(block);
  const slider = h("input", {
    type: "range",
    min: 0,
    max: block.steps.length - 1,
    value: block.steps.length - 1,
    "aria-label": "Step",
    oninput: () => show(Number(slider.value)),
  });
  const show = (index) => {
    const { step } = block.steps[index];
    drawCanvas(canvas, block.steps[index], block.steps[index - 1]);
    figures.textContent = `Step ${step} of ${block.settled.length}: ${stepFigures(block, index)}`;
    slider.setAttribute("aria-valuetext", `Step ${step}`);
    mark(step);
  };
  let timer = null;
  const stop = () => clearInterval(timer);
  const play = button("play", "Play the steps", () => {
    stop();
    slider.value = 0;
    show(0);
    timer = setInterval(() => {
      if (!view.isConnected || Number(slider.value) >= block.steps.length - 1) return stop();
      slider.stepUp();
      return show(Number(slider.value));
    }, FRAME_MS);
  });
  slider.addEventListener("pointerdown", stop);
  slider.addEventListener("keydown", stop);
  const choose = (index) => {
    stop();
    showBlock(view, blocks, index);
    view.querySelector(".choose-block").focus();
  };
  const choice =
    blocks.length > 1 &&
    h(
      "select",
      {
        class: "choose-block",
        "aria-label": "Block",
        onchange: (event) => choose(Number(event.target.value)),
      },
      blocks.map((each, index) =>
        h(
          "option",
          { value: index, selected: index === chosen },
          `Block ${index + 1} · ${several(each.settled.length, "step")}`,
        ),
      ),
    );
  show(block.steps.length - 1);
  view.replaceChildren(
    h("div", { class: "replay-bar" }, choice, play, slider),
    h("p", { class: "replay-line" }, figures, legend()),
    canvas,
    h(
      "div",
      { class: "replay-meaning" },
      h(
        "figure",
        {},
        plot,
        h(
          "figcaption",
          {},
          "Line: tokens that were final after each step. Bars: those that became final in it, late ones marked.",
        ),
      ),
      h("p", {}, explanation(block, chosen + 1)),
    ),
  );
}
