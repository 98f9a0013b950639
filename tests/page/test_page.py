"""The web page in a real browser, against real servers."""

import json
import re

import pytest
from playwright.sync_api import Page, expect

from tests.counting import CANVAS, count, counted, last_number
from tests.page.changed_worker import ROOT, TAKES_TIME, with_changed_worker
from tests.page.conftest import scripted
from tests.polling import wait_until

COMPLETIONS = "**/v1/chat/completions"
WEATHER = {
    "name": "get_weather",
    "description": "Get the weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
DIES_BEHIND_THE_FIRST_BLOCK_OF_SEED_13 = """
            if work.sequence.request.sampling.seed == 13 and work.sequence.block_index > 0:
                os._exit(9)
"""


@pytest.fixture
def start_changed(start_server, tmp_path):
    """Returns a function that starts a ready server whose workers do something else besides."""

    def start(fault, **settings):
        changed = with_changed_worker(fault, tmp_path)
        return start_server(**changed, **settings).wait_until_ready()

    return start


# Returns the text of the last message of the conversation that the browser has kept.
KEPT_TEXT = """() => new Promise((resolve) => {
  indexedDB.open("easel").onsuccess = ({ target: { result: database } }) => {
    const store = database.transaction("conversations").objectStore("conversations");
    store.getAll().onsuccess = ({ target: { result: [conversation] } }) => {
      database.close();
      resolve(conversation?.messages.at(-1).answers?.[0].text);
    };
  };
})"""


def ask(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")


def last_answer(page: Page):
    return page.get_by_role("article", name="Answer").last


def ended_answer(page: Page):
    """Wait until the last answer has ended. Returns it."""
    answer = last_answer(page)
    expect(answer).to_have_attribute("aria-busy", "false")
    return answer


def options(page: Page, **values: str) -> None:
    page.get_by_role("button", name="Options").click()
    dialog = page.get_by_role("dialog", name="Options")
    for label, value in values.items():
        dialog.get_by_label(label.replace("_", " ")).fill(value)
    dialog.get_by_role("button", name="Use these options").click()


def test_an_answer_comes_with_its_figures_and_the_replay_of_its_blocks(demo_server, open_page):
    page = open_page(demo_server.url)
    expect(page.get_by_role("status")).to_have_text("ready")
    expect(page).to_have_title("demo – Easel")
    ask(page, count(3))
    answer = ended_answer(page)
    expect(answer.locator(".prose").last).to_have_text(counted(3))
    expect(answer.locator(".foot .figures")).to_have_text(
        re.compile(
            r"[\d,.]+ tokens/s · first block after [\d.]+ m?s · "
            rf"{2 * last_number(3)} tokens · 3 blocks · \d+ steps"
        )
    )
    expect(
        answer.get_by_role("img", name=re.compile(r"Steps of each block: \d, \d, \d"))
    ).to_be_visible()
    answer.get_by_role("button", name="Steps").click()
    replay = page.get_by_role("region", name="Steps of this answer")
    replay.get_by_role("combobox", name="Block").select_option("1")
    expect(replay.get_by_text(re.compile(f"Block 2 has {CANVAS} tokens and took"))).to_be_visible()
    slider = replay.get_by_role("slider", name="Step")
    slider.press("Home")
    expect(replay.locator(".figures")).to_have_text(re.compile("^Step 1 of"))
    slider.press("End")
    expect(replay.locator(".figures")).to_have_text(
        re.compile(rf"^Step (\d+) of \1: {CANVAS} of {CANVAS}")
    )
    expect(replay.locator(".canvas")).to_contain_text(counted(2)[-10:])
    plot = replay.get_by_role("img", name=re.compile("Tokens that were final after each of"))
    expect(plot).to_be_visible()


def test_a_draft_changes_in_place_and_only_the_finished_block_is_announced(
    start_changed, open_page
):
    page = open_page(start_changed(TAKES_TIME).url)
    page.evaluate("allowEvents(2)")  # the opening and the first draft
    options(page, Most_tokens="32", Seed="1")
    ask(page, "Say something")
    canvas = page.locator(".answer .canvas")
    expect(canvas).to_have_attribute("aria-hidden", "true")
    expect(canvas.locator(".noise").first).to_be_attached()
    expect(canvas.locator(".changed")).to_have_count(0)
    first = canvas.inner_text()
    page.evaluate("allowEvents(1)")
    expect(canvas.locator(".changed").first).to_be_attached()
    assert canvas.inner_text() != first
    assert page.locator("#announcer").inner_text() == ""
    page.evaluate("allowEvents(Infinity)")
    text = ended_answer(page).locator(".prose").last.inner_text()
    expect(canvas).to_have_count(0)
    assert text
    assert text.split()[0] in page.locator("#announcer").inner_text()


def test_without_drafts_none_are_requested_or_shown(demo_server, open_page):
    page = open_page(demo_server.url)
    drafts = page.get_by_role("button", name="Drafts")
    expect(drafts).to_have_attribute("aria-pressed", "true")
    drafts.click()
    expect(drafts).to_have_attribute("aria-pressed", "false")
    with page.expect_request(COMPLETIONS) as request:
        ask(page, "hello")
    assert request.value.post_data_json["stream_options"]["include_drafts"] is False
    expect(ended_answer(page).get_by_role("button", name="Steps")).to_have_count(0)


def test_escape_stops_an_answer_keeps_its_blocks_and_another_can_be_made(server, open_page):
    page = open_page(server.url)
    page.get_by_role("button", name="Drafts").click()  # so each event after the opening is a block
    page.evaluate("allowEvents(3)")  # so the answer can't be at its end before it is stopped
    ask(page, "Say very much")
    expect(page.locator("#announcer p").first).to_be_attached()
    page.keyboard.press("Escape")
    answer = ended_answer(page)
    expect(answer.get_by_text("You stopped this answer.")).to_be_visible()
    assert answer.locator(".prose").last.inner_text()
    expect(answer.locator(".foot .figures")).to_contain_text("tokens/s")
    wait_until(lambda: server.in_flight() == 0)
    page.evaluate("allowEvents(Infinity)")
    options(page, Most_tokens="8")
    answer.get_by_role("button", name="Another answer").click()
    expect(ended_answer(page).get_by_text("limit of tokens")).to_be_visible()
    expect(page.get_by_text("2 of 2")).to_be_visible()
    page.get_by_role("button", name="Previous answer").click()
    expect(page.get_by_text("You stopped this answer.")).to_be_visible()


def test_chats_survive_a_reload_and_are_deleted_together(demo_server, open_page):
    page = open_page(demo_server.url)
    ask(page, "My name is Anna.")
    ended_answer(page)
    ask(page, "What is my name?")
    expect(ended_answer(page)).to_contain_text("Anna")
    page.reload()
    expect(page.get_by_role("article", name="Answer")).to_have_count(2)
    last_answer(page).get_by_role("button", name="Steps").click()
    expect(page.get_by_role("region", name="Steps of this answer")).to_be_visible()
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_role("heading", name="What shall we write?")).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete all chats").click()
    expect(page.get_by_role("button", name="Delete all chats")).to_have_count(0)
    page.reload()
    expect(page.get_by_role("heading", name="What shall we write?")).to_be_visible()


def test_a_browser_that_keeps_nothing_can_chat_too(demo_server, open_page):
    page = open_page(demo_server.url)
    page.context.add_init_script("""
        indexedDB.open = () => { throw new Error("no storage"); };
        const get = () => { throw new DOMException("Access is denied", "SecurityError"); };
        for (const name of ["localStorage", "sessionStorage"])
            Object.defineProperty(window, name, { get });
    """)
    page.reload()
    options(page, Seed="7")
    ask(page, "hello")
    assert ended_answer(page).locator(".prose").last.inner_text()
    expect(page.get_by_text("This browser can't keep the chats: no storage")).to_be_visible()


def test_an_answer_that_a_reload_interrupts_keeps_what_came_and_can_be_retried(server, open_page):
    page = open_page(server.url)
    options(page, Most_tokens="96")
    page.get_by_role("button", name="Drafts").click()
    page.evaluate("allowEvents(2)")  # the opening and the first block
    ask(page, "Say much")
    wait_until(lambda: page.evaluate(KEPT_TEXT))
    page.reload()
    answer = last_answer(page)
    expect(answer.get_by_role("alert")).to_have_text("The page was left before this answer ended.")
    assert answer.locator(".prose").last.inner_text()
    answer.get_by_role("button", name="Retry").click()
    expect(ended_answer(page).get_by_text("limit of tokens")).to_be_visible()
    expect(page.get_by_role("button", name="Retry")).to_have_count(0)


def test_a_message_can_be_edited_and_what_followed_is_made_anew(demo_server, open_page):
    page = open_page(demo_server.url)
    ask(page, "What is 3 + 4?")
    ended_answer(page)
    page.get_by_role("button", name="Edit this message").click()
    page.get_by_role("textbox", name="Edited message").fill("What is 7 + 8?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="You")).to_have_text("What is 7 + 8?")
    expect(ended_answer(page)).to_contain_text("15")
    expect(page.get_by_role("article", name="Answer")).to_have_count(1)


def test_editing_while_an_answer_is_made_stops_it_and_makes_another(start_changed, open_page):
    page = open_page(start_changed(TAKES_TIME).url)
    ask(page, "Say very much")
    expect(page.locator("#announcer p").first).to_be_attached()
    page.get_by_role("button", name="Edit this message").click()
    page.get_by_role("textbox", name="Edited message").fill("Say something else")
    page.get_by_role("button", name="Send again").click()
    expect(page.get_by_role("article", name="You")).to_have_text("Say something else")
    expect(last_answer(page)).to_have_attribute("aria-busy", "true")
    expect(last_answer(page).locator(".prose").last).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(ended_answer(page).get_by_text("You stopped this answer.")).to_be_visible()
    expect(page.get_by_role("article", name="Answer")).to_have_count(1)


def test_the_options_of_a_chat_are_those_of_its_requests_and_of_the_next_chat(
    demo_server, open_page
):
    page = open_page(demo_server.url)
    page.get_by_role("button", name="Options").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Most tokens").fill("40")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Quality").select_option("balanced")
    page.get_by_role("button", name="Use these options").click()
    for _ in range(2):
        with page.expect_request(COMPLETIONS) as request:
            ask(page, "hello")
        body = request.value.post_data_json
        assert body["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hello"},
        ]
        names = ("temperature", "max_completion_tokens", "seed", "quality")
        assert [body[name] for name in names] == [0.5, 40, 7, "balanced"]
        assert ended_answer(page).locator(".prose").last.inner_text()
        page.reload()
        page.get_by_role("button", name="New chat").click()


def test_thoughts_are_folded_and_the_result_of_a_call_is_asked_for(demo_server, open_page):
    page = open_page(demo_server.url)
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Let the model think first").check()
    page.get_by_label("Tools").fill("{}")
    page.get_by_role("button", name="Use these options").click()
    expect(page.get_by_role("dialog")).to_be_visible()  # an object is no list of tools
    page.get_by_label("Tools").fill(json.dumps([WEATHER]))
    page.get_by_role("button", name="Use these options").click()
    ask(page, "What is the weather in Paris?")
    answer = ended_answer(page)
    expect(answer.get_by_text("Calls the tool get_weather")).to_be_visible()
    expect(answer.locator(".call pre")).to_contain_text("Paris")
    thoughts = answer.locator(".thinking .prose")
    expect(thoughts).to_be_hidden()
    answer.get_by_text("Thoughts").click()
    expect(thoughts).to_be_visible()
    result = page.get_by_role("textbox", name="Result of get_weather")
    result.fill('{"temperature": 21, "sky": "sunny"}')
    page.get_by_role("button", name="Send the result").click()
    expect(page.get_by_role("article", name="Answer")).to_have_count(2)
    expect(ended_answer(page)).to_contain_text("Paris")


HOSTILE = """Look: <script>window.broken = 1</script> <img src=x onerror="window.broken = 2">

<iframe src="javascript:parent.broken = 3"></iframe>

[a link](javascript:window.broken=4) ![a picture](https://elsewhere.example/x.png) **bold**

```js
const x = "<script>";
```
"""


def test_the_models_html_is_shown_as_text_and_runs_nothing(demo_server, open_page):
    page = open_page(demo_server.url)
    page.route(COMPLETIONS, scripted(HOSTILE))
    ask(page, HOSTILE)
    answer = ended_answer(page)
    expect(answer).to_contain_text("<script>window.broken = 1</script>")
    expect(answer.locator("strong")).to_have_text("bold")
    expect(answer.locator("pre .hljs-string")).to_have_text('"<script>"')
    expect(answer.locator("script, iframe, .prose img, [onerror]")).to_have_count(0)
    expect(answer.get_by_role("link", name="a picture")).to_have_attribute(
        "rel", "noopener noreferrer"
    )
    expect(answer.get_by_role("link", name="a link")).to_have_count(0)
    expect(page.get_by_role("article", name="You")).to_contain_text("<script>")
    assert page.evaluate("window.broken") is None


DOCUMENT = """<!doctype html>
<title>A page</title>
<style>h1 { color: rgb(1, 2, 3) }</style>
<h1>Waiting</h1>
<script>
  const results = [];
  const report = () => document.querySelector("h1").textContent = results.sort().join(", ");
  try { parent.document.title; } catch { results.push("no parent"); }
  try { localStorage.x; } catch { results.push("no storage"); }
  fetch("/health").catch(() => results.push("no network")).finally(report);
  const image = new Image();
  image.onerror = () => { results.push("no image"); report(); };
  image.src = "/web/icon.svg";
</script>
"""


def test_an_html_document_is_rendered_in_a_frame_without_origin_and_network(demo_server, open_page):
    page = open_page(demo_server.url)
    page.route(COMPLETIONS, scripted(DOCUMENT))
    ask(page, "Write a page")
    answer = ended_answer(page)
    expect(answer.locator("pre")).to_contain_text("<h1>Waiting</h1>")
    toggle = answer.get_by_role("button", name="Show as a page")
    toggle.click()
    heading = page.frame_locator("iframe").get_by_role("heading")
    expect(heading).to_have_css("color", "rgb(1, 2, 3)")
    expect(heading).to_have_text("Waiting")
    answer.get_by_role("button", name="Run its scripts").click()
    expect(heading).to_have_text("no image, no network, no parent, no storage")
    expect(answer.locator("pre")).to_be_visible()
    toggle.click()
    expect(answer.locator("iframe")).to_have_count(0)


def test_answers_with_documents_leave_no_listeners_behind(demo_server, open_page):
    page = open_page(demo_server.url)
    page.context.add_init_script("""
        window.listeners = 0;
        const add = window.addEventListener;
        window.addEventListener = (...given) => { listeners += 1; add(...given); };
    """)
    page.reload()
    page.route(COMPLETIONS, scripted(DOCUMENT))
    ask(page, "Write a page")
    ended_answer(page)
    before = page.evaluate("listeners")
    ask(page, "Write another page")
    expect(page.get_by_role("button", name="Show as a page")).to_have_count(2)
    assert page.evaluate("listeners") == before


def test_a_text_of_many_comments_is_shown(demo_server, open_page):
    page = open_page(demo_server.url)
    page.route(COMPLETIONS, scripted("<!-- a comment -->\n" * 60 + "no document"))
    ask(page, "Write comments")
    expect(ended_answer(page)).to_contain_text("no document")


def test_a_document_can_lead_its_frame_nowhere(demo_server, open_page):
    requests = []
    page = open_page(demo_server.url)
    page.on("request", lambda request: requests.append(request.url))
    escaping = '<!doctype html><script>location = "http://elsewhere.example/?secret"</script>'
    page.route(COMPLETIONS, scripted(escaping))
    ask(page, "Write a page")
    ended_answer(page).get_by_role("button", name="Show as a page").click()
    page.get_by_role("button", name="Run its scripts").click()
    wait_until(lambda: page.evaluate("breaches.length"))
    assert page.evaluate("breaches.splice(0)")[0].startswith("frame-src: http://elsewhere.example")
    assert not [url for url in requests if "elsewhere" in url]


def test_a_worker_that_dies_leaves_what_came_an_error_and_a_retry(start_changed, open_page):
    server = start_changed(DIES_BEHIND_THE_FIRST_BLOCK_OF_SEED_13, EASEL_MODEL="demo")
    page = open_page(server.url)
    options(page, Seed="13")
    ask(page, count(3))
    answer = ended_answer(page)
    expect(answer.get_by_role("alert")).to_be_visible()
    expect(answer.locator(".prose").last).to_have_text(
        re.compile(rf"^1, 2, 3, .*{CANVAS // 2},\s*$")
    )
    options(page, Seed="12")
    server.wait_until_ready()
    answer.get_by_role("button", name="Retry").click()
    expect(ended_answer(page)).to_contain_text(counted(3)[-10:])
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_key_is_asked_for_and_kept_for_the_tab_only(shared_server, open_page):
    server = shared_server(EASEL_API_KEY="right", EASEL_MODEL="demo")
    page = open_page(server.url)
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("API key", exact=True).fill("wrong")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog).to_have_count(0)
    ask(page, "hello")
    expect(dialog).to_contain_text("The API key is not known to this server.")
    dialog.get_by_label("API key", exact=True).fill("right")
    page.keyboard.press("Enter")
    ended_answer(page)
    page.reload()
    expect(page).to_have_title("demo – Easel")
    assert page.evaluate("localStorage.getItem('easel.key')") is None
    page.get_by_role("button", name="Forget the API key").click()
    page.reload()
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")


def test_images_are_attached_where_the_model_takes_them(demo_server, open_page):
    page = open_page(demo_server.url)
    expect(page.get_by_role("button", name="Attach images")).to_have_count(0)
    model = demo_server.http.get("/v1/models").json()
    model["data"][0]["input_modalities"] = ["text", "image"]
    page.route("**/v1/models", lambda route: route.fulfill(json=model))
    page.route(COMPLETIONS, scripted("A picture."))
    page.reload()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Attach images").click()
    chooser.value.set_files(ROOT / "docs" / "step.png")
    expect(page.get_by_alt_text("Image 1")).to_be_visible()
    with page.expect_request(COMPLETIONS) as request:
        ask(page, "What is this?")
    image, text = request.value.post_data_json["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert text["text"] == "What is this?"
    expect(page.get_by_alt_text("Attached image")).to_be_visible()


def test_the_page_fits_a_phone(demo_server, open_page):
    page = open_page(demo_server.url, viewport={"width": 360, "height": 740})
    ask(page, count(3))
    ended_answer(page).get_by_role("button", name="Steps").click()
    expect(page.get_by_role("region", name="Steps of this answer")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("document.getElementById('messages').scrollWidth") <= 360
    menu = page.get_by_role("button", name="Show the chats")
    menu.click()
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_role("navigation")).to_be_hidden()
    menu.click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("navigation")).to_be_hidden()


def test_the_theme_follows_the_system_until_a_person_chooses(demo_server, open_page):
    page = open_page(demo_server.url, color_scheme="dark", reduced_motion="reduce")
    expect(page.locator("body")).to_have_css("background-color", "rgb(21, 23, 27)")
    page.get_by_role("button", name="Theme: system. Change it").click()
    expect(page.locator("body")).to_have_css("background-color", "rgb(251, 250, 248)")
    page.reload()
    expect(page.locator("body")).to_have_css("background-color", "rgb(251, 250, 248)")
    expect(page.get_by_role("button", name="Theme: light. Change it")).to_be_visible()


def test_everything_is_reached_by_the_keyboard_in_order(demo_server, open_page):
    page = open_page(demo_server.url)
    ask(page, "hello")
    ended_answer(page)
    page.locator(".skip").focus()
    names = ["Go to the message box"]
    for _ in range(20):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "document.activeElement.ariaLabel ?? document.activeElement.textContent"
        )
        names.append(name)
        if name == "Send":
            break
    assert names[:3] == ["Go to the message box", "New chat", "hello"]
    rest = ["Drafts", "Options", "Edit this message", "Steps", "Another answer", "Message", "Send"]
    assert [name for name in names if name in rest] == rest


FRAMES = {
    "quick": ([["a", "b"], ["a", "b"]], [2, 2]),
    "late": (
        [["a", "x", "c"], ["a", "y", "c"], ["a", "z", "c"], ["a", "b", "c"], ["a", "b", "c"]],
        [2, 2, 2, 3, 3],
    ),
    "cut": ([["a"], ["b"]], [0, 1]),
    "empty": ([[""]], [0]),
}


@pytest.mark.parametrize(
    ("frames", "sentences"),
    [
        (
            "quick",
            "every token was already the final one. One more step confirmed it",
        ),
        ("late", "one token (“b”), which became final only by step 4"),
        ("cut", "the block ended at the limit of steps"),
        ("empty", "It ends the answer and adds no text."),
    ],
)
def test_the_explanation_says_why_a_block_took_its_steps(demo_server, open_page, frames, sentences):
    page = open_page(demo_server.url)
    tokens, settled = FRAMES[frames]
    steps = [
        {"step": step, "tokens": each, "accepted": [True] * len(each), "entropy": 0.0}
        for step, each in enumerate(tokens, 1)
    ]
    explanation = page.evaluate(
        "async (block) => (await import('/web/blocks.js')).explanation(block, 1)",
        {"steps": steps, "settled": settled},
    )
    assert sentences in explanation
