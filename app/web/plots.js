// Small plots of an answer's blocks and of a block's steps.

import { isLate, settledAt } from "./blocks.js";
import { several, svg } from "./dom.js";

const WIDTH = 320;
const HEIGHT = 96;
const LEFT = 30;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 18;

/** Returns a bar for each block, as high as its steps are many. */
export function stepsPlot(blocks) {
  const counts = blocks.map((block) => block.settled.length);
  const most = Math.max(...counts);
  const bars = counts.map((count, index) => {
    const height = Math.max(2, (14 * count) / most);
    return svg("rect", { x: 5 * index, y: 15 - height, width: 4, height, rx: 1 });
  });
  const label = `Steps of each block: ${counts.join(", ")}`;
  return svg(
    "svg",
    {
      class: "bars",
      viewBox: `0 0 ${5 * counts.length} 15`,
      width: 5 * counts.length,
      height: 15,
      role: "img",
    },
    svg("title", {}, label),
    bars,
  );
}

/**
 * Returns a plot of how many tokens were final after each step, and its function `mark(step)`. Bars
 * show how many tokens became final in each step. Those of the later half are marked.
 */
export function settledPlot(block) {
  const { settled } = block;
  const steps = settled.length;
  const tokens = Math.max(1, settled.at(-1));
  const right = WIDTH - RIGHT;
  const bottom = HEIGHT - BOTTOM;
  const x = (step) => LEFT + ((right - LEFT) * (step - 0.5)) / steps;
  const y = (count) => bottom - ((bottom - TOP) * count) / tokens;
  const width = Math.min(18, (0.7 * (right - LEFT)) / steps);
  const bars = settled.map((count, index) => {
    const added = count - (settled[index - 1] ?? 0);
    const late = isLate(index + 1, block) && added > 0;
    const height = added > 0 ? Math.max(2, bottom - y(added)) : 0;
    return svg("rect", {
      class: late ? "late" : "bar",
      x: x(index + 1) - width / 2,
      y: bottom - height,
      width,
      height,
    });
  });
  const points = settled.map((count, index) => `${x(index + 1)},${y(count)}`);
  const line = svg("polyline", { class: "line", points: points.join(" ") });
  const dots = settled.map((count, index) =>
    svg("circle", { class: "dot", cx: x(index + 1), cy: y(count), r: steps > 24 ? 1.5 : 2.5 }),
  );
  const cursor = svg("line", { class: "cursor", y1: TOP - 4, y2: bottom });
  const label =
    `Tokens that were final after each of ${several(steps, "step")}: ${settled.join(", ")}. ` +
    `The last became final in step ${Math.max(...settledAt(block))}.`;
  const text = (content, left, top, anchor) =>
    svg("text", { x: left, y: top, "text-anchor": anchor }, content);
  const plot = svg(
    "svg",
    { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" },
    svg("title", {}, label),
    svg("line", { class: "axis", x1: LEFT, x2: right, y1: bottom, y2: bottom }),
    svg("line", { class: "axis", x1: LEFT, x2: LEFT, y1: TOP, y2: bottom }),
    cursor,
    bars,
    line,
    dots,
    text(tokens, LEFT - 5, TOP + 4, "end"),
    text("0", LEFT - 5, bottom + 3, "end"),
    text("step 1", x(1), HEIGHT - 4, steps > 1 ? "start" : "middle"),
    steps > 1 && text(`step ${steps}`, x(steps), HEIGHT - 4, "end"),
  );
  const mark = (step) => {
    cursor.setAttribute("x1", x(step));
    cursor.setAttribute("x2", x(step));
  };
  return { plot, mark };
}
