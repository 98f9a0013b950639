// Builds elements without HTML text, so that no text can become markup.

const SVG = "http://www.w3.org/2000/svg";

// Paths in a square of 24 units, drawn as lines.
const ICONS = {
  attach:
    "M20 11.5 12 19.5a5 5 0 0 1-7-7l8.5-8.5a3.4 3.4 0 0 1 4.8 4.8L9.8 17.3a1.7 1.7 0 0 1-2.4-2.4l7.3-7.3",
  close: "M6 6l12 12M18 6 6 18",
  copy: "M9 9h10v10H9zM5 15V5h10",
  eye: "M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12zM12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6z",
  edit: "M4 20h4L19 9l-4-4L4 16zM13.5 6.5l4 4",
  half: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  left: "M15 6l-6 6 6 6",
  menu: "M4 7h16M4 12h16M4 17h16",
  moon: "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z",
  page: "M4 5h16v14H4zM4 9h16",
  play: "M8 5l11 7-11 7z",
  plus: "M12 5v14M5 12h14",
  right: "M9 6l6 6-6 6",
  send: "M12 20V5M6 11l6-6 6 6",
  settings:
    "M4 7h9M17 7h3M4 17h3M11 17h9M13 7a2 2 0 1 0 4 0 2 2 0 0 0-4 0zM7 17a2 2 0 1 0 4 0 2 2 0 0 0-4 0z",
  steps: "M4 20V14M10 20V9M16 20V6M21 20H3",
  stop: "M7 7h10v10H7z",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v3M12 19v3M2 12h3M19 12h3M5 5l2 2M17 17l2 2M5 19l2-2M17 7l2-2",
  again: "M19 12a7 7 0 1 1-2-5M19 3v5h-5",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
};

/**
 * Returns a new element. A property that begins with "on" is a listener, one with the value false
 * or undefined is left out, and all others are attributes. Children may be nested lists, and
 * strings become text.
 */
export function h(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** Returns a new SVG element, like `h`. */
export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

/** Returns an icon, which screen readers skip. */
export function icon(name) {
  return svg(
    "svg",
    { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" },
    svg("path", { d: ICONS[name] }),
  );
}

/** Returns a button with an icon. Its label is a tooltip, or stands beside the icon if `shown`. */
export function button(name, label, onclick, { shown = false, ...properties } = {}) {
  return h(
    "button",
    {
      type: "button",
      class: shown ? "button" : "button bare",
      "aria-label": shown ? undefined : label,
      title: shown ? undefined : label,
      onclick,
      ...properties,
    },
    icon(name),
    shown && h("span", {}, label),
  );
}

/** Returns a button that copies a text, or nothing where the browser does not let pages copy. */
export function copyButton(label, text) {
  return navigator.clipboard && button("copy", label, () => navigator.clipboard.writeText(text));
}

/** Make these elements the children of `parent`. Those that stand where they belong are not moved. */
export function arrange(parent, elements) {
  for (const [index, element] of elements.entries()) {
    if (parent.children[index] !== element)
      parent.insertBefore(element, parent.children[index] ?? null);
  }
  while (parent.children.length > elements.length) parent.lastElementChild.remove();
}

const announcer = document.getElementById("announcer");

/** Have screen readers say a text when they have finished what they say now. */
export function announce(text) {
  announcer.append(h("p", {}, text));
  while (announcer.children.length > 20) announcer.firstChild.remove();
}

/** Returns a number as people read it: 1,440 or 12.3 or 0.0137. */
export function shown(number) {
  const digits = number >= 100 ? 0 : number >= 10 ? 1 : 2;
  return number.toLocaleString("en-GB", { maximumFractionDigits: digits });
}

/** Returns "1 step" or "2 steps". */
export function several(count, noun) {
  return `${count.toLocaleString("en-GB")} ${noun}${count === 1 ? "" : "s"}`;
}
