"""Takes the pictures of the web page in docs/: `make screenshots`.

The answers are the demo model's own. The picture of a draft is taken while the page is not given
the next event of the answer.
"""

import tempfile
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from tests.page.browser import BROWSER_ARGUMENTS, INIT, executable
from tests.page.changed_worker import TAKES_TIME, with_changed_worker
from tests.running_server import Server

Scheme = Literal["light", "dark"]

DOCS = Path(__file__).parents[2] / "docs"
DESKTOP: ViewportSize = {"width": 1100, "height": 720}
PHONE: ViewportSize = {"width": 360, "height": 720}
FIRST = "What can you do?"
QUESTION = "Reverse the words: green moon red river chair"
SEED = "3"  # with which the answer to the question takes several steps


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        slow = with_changed_worker(TAKES_TIME, Path(folder))
        server = Server(Path(folder) / "log", EASEL_MODEL="demo", **slow).wait_until_ready()
        try:
            with playwright.chromium.launch(
                executable_path=executable(playwright), args=BROWSER_ARGUMENTS
            ) as browser:
                draft(browser, server.url, Path(folder))
                replay(browser, server.url, Path(folder), "dark", DESKTOP, "page-dark")
                replay(browser, server.url, Path(folder), "light", PHONE, "page-phone")
        finally:
            server.stop()


def draft(browser: Browser, url: str, folder: Path) -> None:
    page = opened(browser, url, "light", DESKTOP)
    ask(page, FIRST)
    page.locator(".answer[aria-busy=false]").wait_for()
    page.evaluate("allowEvents(4)")  # the opening and three drafts, of which the last has a change
    ask(page, QUESTION)
    page.locator(".answer .canvas .changed").first.wait_for()
    save(page, folder, "page-light")
    page.evaluate("allowEvents(Infinity)")


def replay(
    browser: Browser, url: str, folder: Path, scheme: Scheme, size: ViewportSize, name: str
) -> None:
    page = opened(browser, url, scheme, size)
    ask(page, QUESTION)
    page.get_by_role("button", name="Steps").click()
    slider = page.get_by_role("slider", name="Step")
    slider.press("Home")
    slider.press("ArrowRight")
    slider.blur()
    save(page, folder, name)


def opened(browser: Browser, url: str, scheme: Scheme, size: ViewportSize) -> Page:
    context = browser.new_context(
        viewport=size, color_scheme=scheme, device_scale_factor=2, reduced_motion="reduce"
    )
    context.add_init_script(INIT)
    page = context.new_page()
    page.goto(url)
    page.locator(".dot.ready").wait_for()
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Seed").fill(SEED)
    page.get_by_role("button", name="Use these options").click()
    return page


def ask(page: Page, question: str) -> None:
    page.get_by_role("textbox", name="Message").fill(question)
    page.keyboard.press("Enter")


def save(page: Page, folder: Path, name: str) -> None:
    picture = folder / f"{name}.png"
    page.screenshot(path=picture)
    with Image.open(picture) as image:
        image.save(DOCS / f"{name}.webp", quality=80, method=6)


if __name__ == "__main__":
    main()
