// Shows an HTML document that the model wrote: its source, and beside it the document itself.
//
// The document runs in a sandboxed frame. It has no origin, so it can read nothing of this page,
// and the policies of the page and of the frame keep it from any network.

import { button, h } from "./dom.js";

/** Returns whether a text is an HTML document. */
export function isDocument(text) {
  return /^\s*(<!--[^]*?-->\s*)*(<!doctype html|<html[\s>])/i.test(text);
}

/** Returns the source, beside which a button in `head` shows the document. */
export function documentView(source, text, head) {
  const view = h("div", { class: "document" }, source);
  let frame = null;
  // The frame asks for its document when it is loaded, also when it is loaded once more.
  const answer = ({ source: asking, data }) => {
    if (asking === frame.contentWindow && data === "ready") asking.postMessage(text, "*");
  };
  const toggle = button("page", "Show as a page", () => {
    if (frame) {
      removeEventListener("message", answer);
      frame.remove();
      frame = null;
    } else {
      frame = h("iframe", {
        src: "/web/frame.html",
        sandbox: "allow-scripts",
        title: "The document that the model wrote",
        referrerpolicy: "no-referrer",
      });
      addEventListener("message", answer);
      view.append(frame);
    }
    toggle.setAttribute("aria-pressed", String(frame !== null));
    view.classList.toggle("split", frame !== null);
  }, { shown: true, "aria-pressed": "false" });
  head.append(toggle);
  return view;
}
