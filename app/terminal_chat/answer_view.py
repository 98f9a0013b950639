"""How an answer looks while it is made: finished text, and behind it the canvas that denoises.

What a model writes is never trusted: control characters, with which a text could take over the
terminal, are shown as replacement characters.
"""

from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from app.terminal_chat.running_server import Frame

THOUGHT = "dim italic"
ACCEPTED, NOISE, CHANGED = "", "dim", "bold cyan"  # tokens of a draft
_CONTROLS = {
    code: "\ufffd" for code in (*range(32), *range(127, 160)) if code not in (ord("\n"), ord("\t"))
}


def harmless(text: str) -> str:
    """Returns the text without control characters, except line breaks and tabs."""
    return text.replace("\r\n", "\n").translate(_CONTROLS)


class AnswerView(Protocol):
    """Shows one answer. Use it as a context manager: what has come stays on the screen."""

    def __enter__(self) -> "AnswerView": ...

    def __exit__(self, *_error: object) -> None: ...

    def add(self, text: str, *, is_thought: bool) -> None:
        """Show text that a finished block has added."""

    def draft(self, frame: Frame) -> None:
        """Show a block in the making, in place of what was shown of it before."""


class PlainView:
    """Prints an answer as it comes, without drafts and thoughts. It needs no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> "PlainView":
        return self

    def __exit__(self, *_error: object) -> None:
        self._console.print()

    def add(self, text: str, *, is_thought: bool) -> None:
        if not is_thought:
            self._console.print(Text(harmless(text)), end="", soft_wrap=True)

    def draft(self, frame: Frame) -> None:
        """Show nothing: a draft can only be drawn where it can be removed again."""


class LiveView:
    """Draws an answer on a terminal, and the draft of its next block behind it.

    Finished lines are printed once and scroll away. Only the last line and the draft are redrawn.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._line = Text()  # the last line so far, which may go on
        self._frame: Frame | None = None
        self._before: Frame | None = None  # the frame that was shown before it
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "LiveView":
        self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._live.stop()
        self._console.print(self._line, soft_wrap=True)

    def add(self, text: str, *, is_thought: bool) -> None:
        self._frame = self._before = None  # the draft has become this text
        self._line.append(harmless(text), THOUGHT if is_thought else "")
        *whole, self._line = self._line.split("\n", allow_blank=True)
        for line in whole:
            self._console.print(line, soft_wrap=True)
        self._draw()

    def draft(self, frame: Frame) -> None:
        if frame.settled is not None:  # its text has come before it
            return
        same_block = self._frame is not None and self._frame.block == frame.block
        self._before, self._frame = self._frame if same_block else None, frame
        self._draw()

    def _draw(self) -> None:
        shown = self._line.copy()
        if self._frame is not None:
            before = [] if self._before is None else self._before.tokens
            shown.append_text(shaded(self._frame, before))
        # What is higher than the terminal could not be removed again, so only its end is drawn.
        rows = shown.wrap(self._console, self._console.width)
        end = rows[-max(1, self._console.height - 1) :]
        self._live.update(Text("\n").join(end), refresh=True)


def shaded(frame: Frame, before: Sequence[str]) -> Text:
    """Returns a draft with each token in the style of its state.

    `before` are the tokens of the draft that was shown before it, if it is of the same block.
    """
    text = Text()
    for index, (token, accepted) in enumerate(zip(frame.tokens, frame.accepted, strict=True)):
        changed = index < len(before) and before[index] != token
        style = CHANGED if changed else ACCEPTED if accepted else NOISE
        text.append(harmless(token), style)
    return text
