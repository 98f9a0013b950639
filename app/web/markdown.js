// Shows a model's text as Markdown. The text is never trusted as HTML.
//
// marked makes HTML of the Markdown, in which HTML of the model itself is shown as text. DOMPurify
// then removes whatever is not on the list below. Both stand before the policy of the page, which
// runs no script but its own and loads nothing from elsewhere.

import { Marked } from "./vendor/marked.js";
import "./vendor/purify.js";
import { copyButton, h } from "./dom.js";
import { documentView, isDocument } from "./document_view.js";

const ALLOWED = {
  ALLOWED_TAGS: [
    ..."a b blockquote br code del em h1 h2 h3 h4 h5 h6 hr i input li ol p pre".split(" "),
    ..."span strong sub sup table tbody td th thead tr ul".split(" "),
  ],
  ALLOWED_ATTR: ["align", "checked", "class", "disabled", "href", "start", "type"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};
const LANGUAGE = "language-";

const escaped = (text) => text.replace(/[&<>"']/g, (character) => `&#${character.codePointAt(0)};`);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escaped(text),
    // A picture from elsewhere would tell its server that it is looked at.
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
  },
});

const purify = globalThis.DOMPurify;
let highlighter;

/** Returns a safe fragment of elements for a text in Markdown. */
export function rendered(text) {
  const whole = isDocument(text) ? `\`\`\`\`\`html\n${text}\n\`\`\`\`\`` : text;
  const fragment = purify.sanitize(marked.parse(whole), ALLOWED);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const table of fragment.querySelectorAll("table")) {
    const scroller = h("div", {
      class: "scroller",
      tabindex: "0",
      role: "group",
      "aria-label": "Table",
    });
    table.replaceWith(scroller);
    scroller.append(table);
  }
  for (const code of fragment.querySelectorAll("pre > code")) codeBlock(code);
  return fragment;
}

/** Put a block of code into a frame with its language, a button to copy it, and colours. */
function codeBlock(code) {
  const name = [...code.classList].find((each) => each.startsWith(LANGUAGE));
  const language = name?.slice(LANGUAGE.length).toLowerCase() ?? "";
  const text = code.textContent;
  const source = code.parentElement;
  source.tabIndex = 0;
  const copy = copyButton("Copy code", text);
  const head = h("div", { class: "code-head" }, h("span", {}, language || "text"), copy);
  const block = h("div", { class: "code" }, head);
  source.replaceWith(block);
  const shown = isDocument(text) ? documentView(source, text, head) : source;
  block.append(shown);
  if (language) highlight(code, language, text);
}

/** Colour a block of code when the highlighter is loaded, if it knows the language. */
async function highlight(code, language, text) {
  highlighter ??= import("./vendor/highlight.js").then((module) => module.default);
  const loaded = await highlighter;
  if (!loaded.getLanguage(language)) return;
  const { value } = loaded.highlight(text, { language, ignoreIllegals: true });
  code.replaceChildren(purify.sanitize(value, ALLOWED));
}
