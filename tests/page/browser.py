"""The Chromium in which the tests use the web page, and what it gets besides."""

import shutil
from pathlib import Path

from playwright.sync_api import Playwright

# Chromium's own sandbox can't be had as root. The tests open pages of their own server only.
BROWSER_ARGUMENTS = ["--no-sandbox"]
_BROWSERS = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)

# Notes breaches of the policy, and holds back events of answers so that a test can look at each.
INIT = """
window.breaches = [];
document.addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) =>
  breaches.push(`${violatedDirective}: ${blockedURI}`));
if (window === window.top) {
  const original = window.fetch;
  let waiting = [];
  let allowed = Infinity;
  window.allowEvents = (count) => {
    allowed = count;
    for (const go of waiting.splice(0)) go();
  };
  window.fetch = async (...request) => {
    const response = await original(...request);
    if (!String(request[0]).endsWith("/completions") || !response.ok) return response;
    const signal = request[1]?.signal;
    let text = "";
    const gate = new TransformStream({
      start(controller) { // a stream that is stopped does not wait for events that are held back
        signal?.addEventListener("abort", () => controller.error(signal.reason));
      },
      async transform(chunk, controller) {
        const events = (text + chunk).split("\\n\\n");
        text = events.pop();
        for (const event of events) {
          while (allowed <= 0) await new Promise((go) => waiting.push(go));
          allowed -= 1;
          controller.enqueue(event + "\\n\\n");
        }
      },
    });
    const body = response.body
      .pipeThrough(new TextDecoderStream()).pipeThrough(gate).pipeThrough(new TextEncoderStream());
    return new Response(body, response);
  };
}
"""


def executable(playwright: Playwright) -> str | None:
    """Returns the browser of this machine: one in the PATH, or the one that playwright installs."""
    own = playwright.chromium.executable_path
    in_path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    return in_path or (own if Path(own).exists() else None)
