// Shows an HTML document that the model wrote: its source, and beside it the document itself.
//
// The document stands in a sandboxed frame. It has no origin, so it can read nothing of this page,
// and the policies of the page and of the frame keep it from every request. Its scripts run only
// if a person asks for it.

import { button, h } from "./dom.js";

const documents = new WeakMap(); // the document of each frame

// A frame asks for its document when it is loaded, also when it is loaded once more.
addEventListener("message", ({ source, data }) => {
  if (data !== "ready") return;
  const frames = [...document.querySelectorAll("iframe")];
  const asking = frames.find((each) => each.contentWindow === source);
  if (documents.has(asking)) source.postMessage(documents.get(asking), "*");
});

/** Returns whether a text is an HTML document. */
export function isDocument(text) {
  // A comment has only one end here. If it could go on behind it, many of them would take for ever.
  return /^\s*(<!--((?!-->)[^])*-->\s*)*(<!doctype html|<html[\s>])/i.test(text);
}

/** Returns the source, beside which buttons in `head` show the document. */
export function documentView(source, text, head) {
  const view = h("div", { class: "document" }, source);
  const frame = h("iframe", {
    sandbox: "allow-scripts",
    title: "The document that the model wrote",
    referrerpolicy: "no-referrer",
  });
  documents.set(frame, text);
  const show = (src) => {
    frame.remove();
    frame.src = src ?? "";
    if (src) view.append(frame);
    view.classList.toggle("split", Boolean(src));
    toggle.setAttribute("aria-pressed", String(Boolean(src)));
    run.hidden = !src;
  };
  const toggle = button(
    "page",
    "Show as a page",
    () => show(frame.isConnected ? null : "/web/frame.html"),
    { shown: true, "aria-pressed": "false" },
  );
  const run = button("play", "Run its scripts", () => show("/web/frame-with-scripts.html"), {
    shown: true,
    hidden: true,
  });
  head.append(run, toggle);
  return view;
}
