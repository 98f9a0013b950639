// Draws one step of a canvas: a span for each token, shaded by what became of it.

import { changes } from "./blocks.js";
import { h } from "./dom.js";

/**
 * Show a step in `element`. The elements of the step before are used again, so that only what
 * differs is painted. Tokens are accepted or noise, and changed if `before` had another there.
 */
export function drawCanvas(element, step, before) {
  const changed = changes(step, before);
  while (element.childElementCount > step.tokens.length) element.lastChild.remove();
  for (const [index, token] of step.tokens.entries()) {
    const span = element.children[index] ?? element.appendChild(document.createElement("span"));
    if (span.textContent !== token) span.textContent = token;
    const state = step.accepted[index] ? "accepted" : "noise";
    const shading = changed[index] ? `${state} changed` : state;
    if (span.className !== shading) span.className = shading;
  }
}

/** Returns the legend of the shading. */
export function legend() {
  const entry = (shading, text) =>
    h("span", {}, h("span", { class: `swatch ${shading}`, "aria-hidden": "true" }, "abc"), text);
  return h(
    "span",
    { class: "legend" },
    entry("accepted", "accepted"),
    entry("accepted changed", "changed"),
    entry("noise", "still noise"),
  );
}
