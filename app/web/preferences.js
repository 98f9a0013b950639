// What a person chose for this browser: the theme, whether drafts show, and the latest options.

import { forBrowser } from "./storage.js";

const PREFIX = "easel.";
const THEMES = ["", "light", "dark"]; // the first follows the system

export function preference(name, fallback) {
  const kept = forBrowser.getItem(PREFIX + name);
  return kept === null ? fallback : JSON.parse(kept);
}

export function prefer(name, value) {
  forBrowser.setItem(PREFIX + name, JSON.stringify(value));
}

export function theme() {
  return forBrowser.getItem(`${PREFIX}theme`) ?? "";
}

/** Switch to the next of the three themes. It is kept as plain text, which theme.js reads early. */
export function nextTheme() {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  if (next) {
    forBrowser.setItem(`${PREFIX}theme`, next);
    document.documentElement.dataset.theme = next;
  } else {
    forBrowser.removeItem(`${PREFIX}theme`);
    delete document.documentElement.dataset.theme;
  }
}
