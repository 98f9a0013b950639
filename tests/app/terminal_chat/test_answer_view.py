"""How the terminal shows answers and drafts."""

from io import StringIO

import pytest
from rich.console import Console
from rich.text import Text

from app.terminal_chat.answer_view import CHANGED, NOISE, LiveView, PlainView, harmless, shaded
from app.terminal_chat.running_server import Frame


def frame(tokens, *, accepted=None, settled=None, block=0):
    return Frame(block, 1, tokens, accepted or [True] * len(tokens), settled)


def styles(text: Text):
    return [(text.plain[span.start : span.end], span.style) for span in text.spans if span.style]


def test_tokens_are_shaded_by_whether_they_are_noise_or_have_changed():
    draft = frame(["The", " sky", " is", " red"], accepted=[True, False, True, False])
    assert styles(shaded(draft, [])) == [(" sky", NOISE), (" red", NOISE)]
    changed = shaded(draft, ["The", " cat", " was", " red"])
    assert styles(changed) == [(" sky", CHANGED), (" is", CHANGED), (" red", NOISE)]
    assert changed.plain == "The sky is red"


@pytest.mark.parametrize("text", ["\x1b[2J", "\x1b]0;title\x07", "a\rb", "\x9b2J", "\x7f", "\x00"])
def test_no_control_character_of_a_model_reaches_the_terminal(text):
    shown = harmless(text) + shaded(frame([text]), []).plain
    assert shown.isprintable()


def test_line_breaks_and_tabs_are_kept():
    assert harmless("a\r\nb\tc\n") == "a\nb\tc\n"


def terminal(width=20, height=5):
    return Console(
        file=StringIO(), force_terminal=True, width=width, height=height, color_system=None
    )


def screen(console):
    """Returns what a terminal would show after what was written to it."""
    lines, row, column = [""], 0, 0
    text = console.file.getvalue()
    at = 0
    while at < len(text):
        if text.startswith("\x1b[2K", at):
            lines[row], at = "", at + 4
        elif text.startswith("\x1b[1A", at):
            row, at = row - 1, at + 4
        elif text.startswith(("\x1b[?25l", "\x1b[?25h"), at):
            at += 6
        elif text[at] == "\r":
            column, at = 0, at + 1
        elif text[at] == "\n":
            row, column, at = row + 1, 0, at + 1
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + text[at] + lines[row][column + 1 :]
            column, at = column + 1, at + 1
    return "\n".join(line.rstrip() for line in lines).rstrip("\n").split("\n")


def test_a_draft_is_shown_behind_the_finished_text_until_its_block_comes():
    console = terminal()
    with LiveView(console) as view:
        view.add("one\ntwo", is_thought=False)
        view.draft(frame([" th", "ree"]))
        assert screen(console) == ["one", "two three"]
        view.draft(frame([" tree"]))
        assert screen(console) == ["one", "two tree"]
        view.add(" four", is_thought=False)
        assert screen(console) == ["one", "two four"]
        view.draft(frame([" four"], settled=[1]))
        assert screen(console) == ["one", "two four"]
    assert screen(console) == ["one", "two four"]


def test_a_draft_higher_than_the_terminal_leaves_nothing_behind():
    console = terminal(width=10, height=4)
    with LiveView(console) as view:
        for number in range(5):
            view.draft(frame([f"word{number:02} "] * 12))
            assert len(screen(console)) == 3
        view.add("done", is_thought=False)
    assert screen(console) == ["done"]


def test_a_draft_of_another_block_is_not_compared_with_the_one_before():
    console = Console(file=StringIO(), force_terminal=True, width=20, color_system="standard")
    with LiveView(console) as view:
        view.draft(frame(["a"], block=0))
        view.draft(frame(["b"], block=1))
        assert "\x1b[1;36m" not in console.file.getvalue()
        view.draft(frame(["c"], block=1))
        assert "\x1b[1;36mc" in console.file.getvalue()


def test_without_a_terminal_the_answer_is_printed_as_it_is():
    console = Console(file=StringIO(), width=10)
    with PlainView(console) as view:
        view.add("a thought", is_thought=True)
        view.draft(frame(["x"]))
        view.add("a line of more than ten [bold]characters\n", is_thought=False)
        view.add("\x1b[2J", is_thought=False)
    assert console.file.getvalue() == "a line of more than ten [bold]characters\n\ufffd[2J\n"
