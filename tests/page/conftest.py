"""A headless Chromium in which the tests use the page as a person does.

Every page that a test opens must end without an error of a script and without a breach of its
Content-Security-Policy.
"""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.page.browser import BROWSER_ARGUMENTS, INIT, executable

_WIDTH, _HEIGHT = 1100, 760
_PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The browser. Its event loop runs in this thread until the module's tests have ended."""
    with sync_playwright() as playwright:
        chromium = executable(playwright)
        if chromium is None:
            missing = "no Chromium is in the PATH; on Debian: make browser"
            if os.environ.get("CI"):
                pytest.fail(missing)
            pytest.skip(missing)
        with playwright.chromium.launch(
            executable_path=chromium, args=BROWSER_ARGUMENTS
        ) as browser:
            expect.set_options(timeout=_PATIENCE_MS)
            yield browser


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Returns a function that opens the page of a server in a browser that has no storage yet.

    Its options are those of playwright's contexts.
    """
    contexts, pages, errors = [], [], list[str]()

    def open_page(url: str, **options: Any) -> Page:
        context = browser.new_context(
            **{"viewport": {"width": _WIDTH, "height": _HEIGHT}, **options}
        )
        context.set_default_timeout(_PATIENCE_MS)
        context.add_init_script(INIT)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        pages.append(page)
        page.goto(url)
        return page

    yield open_page
    try:
        breaches = [page.evaluate("breaches") for page in pages if not page.is_closed()]
    finally:
        for context in contexts:
            context.close()
    assert errors == []
    assert not any(breaches), breaches


def scripted(text: str) -> Callable[[Route], None]:
    """Returns a route that answers with this text, for what the demo model can't write."""
    chunks = [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None},
        {"index": 0, "delta": {"content": text}, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": "stop"},
    ]
    events = [json.dumps({"choices": [each]}) for each in chunks]
    body = "".join(f"data: {each}\n\n" for each in [*events, "[DONE]"])
    return lambda route: route.fulfill(body=body, content_type="text/event-stream")
