// The list of conversations.

import { title } from "./conversation.js";
import { button, h } from "./dom.js";

/** Show the conversations in `element`, of which `current` is open. */
export function showSidebar(
  element,
  conversations,
  current,
  { onopen, onnew, onremove, onremoveall, onforget, onclose },
) {
  const entry = (each) =>
    h(
      "li",
      {},
      h(
        "button",
        {
          type: "button",
          class: "conversation",
          "aria-current": each.id === current.id ? "true" : undefined,
          onclick: () => onopen(each),
        },
        title(each),
      ),
      button("trash", `Delete “${title(each)}”`, () => onremove(each)),
    );
  element.replaceChildren(
    h(
      "div",
      { class: "sidebar-head" },
      h("img", { src: "/web/icon.svg", alt: "", width: 24, height: 24 }),
      h("strong", {}, "Easel"),
      button("close", "Close the list", onclose, { id: "close-sidebar" }),
    ),
    button("plus", "New chat", onnew, { shown: true, id: "new-chat" }),
    h("ul", {}, conversations.map(entry)),
    h(
      "div",
      { class: "sidebar-foot" },
      onforget && button("close", "Forget the API key", onforget, { shown: true }),
      conversations.length > 0 &&
        button("trash", "Delete all chats", onremoveall, { shown: true, id: "delete-all" }),
    ),
  );
}
