"""The conversation: reads lines, carries out commands and shows answers.

On a terminal, lines can be edited and earlier ones come back with the arrow keys, also those of
earlier chats. Without one, each line of stdin is a message, and nothing but answers is printed.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from rich.console import Console

from app.terminal_chat.answer_view import CHANGED, NOISE, AnswerView, LiveView, PlainView
from app.terminal_chat.running_server import (
    Added,
    Ended,
    Frame,
    Message,
    RunningServer,
    ServerError,
)
from app.terminal_chat.statistics import Statistics

_PROMPT = "> "
_MOST_LINES = 1_000  # of earlier chats
_HELP = f"""\
/help           this list
/stats          figures of the last answer: speed, blocks, steps
/system TEXT    instructions for the model; without TEXT there are none
/clear          begin a new conversation
/drafts         show or hide blocks while they are made
/quit           end the chat, like Ctrl-D
Ctrl-C          stop an answer; what has come of it stays in the conversation

While a block is made, each token is accepted, [{NOISE}]still noise[/] or
[{CHANGED}]changed since the last step[/]."""


class _Quit(Exception):
    """The command `/quit`."""


class Chat:
    """One conversation with the server."""

    def __init__(self, server: RunningServer, console: Console, *, system: str, drafts: bool):
        """With a console that is no terminal, or another stdin, the chat is plain."""
        self._server = server
        self._console = console
        self._system = system
        self._drafts = drafts
        self._turns: list[Message] = []
        self._statistics = Statistics()
        self._is_live = console.is_terminal and not console.is_dumb_terminal and sys.stdin.isatty()

    def run(self) -> int:
        """Chat until the input ends. Returns the exit code.

        It is 1 if there is no terminal and an answer has failed. Raises ServerError if the server
        cannot be reached at the start.
        """
        model = self._server.model()
        if not self._is_live:
            return self._run_plainly()
        size = "" if model.canvas_length is None else f" ({model.canvas_length} tokens a block)"
        self._note(f"{model.name}{size} on {self._server.url}. /help lists the commands.")
        with _history(), contextlib.suppress(_Quit):
            for line in _typed_lines():
                self._take(line)
        return 0

    def _run_plainly(self) -> int:
        try:
            with contextlib.suppress(_Quit):
                for line in sys.stdin:
                    self._take(line)
        except ServerError as error:
            print(f"easel: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        return 0

    def _take(self, line: str) -> None:
        """Carry out a command, or answer a message."""
        line = line.strip()
        if line.startswith("/"):
            self._command(*line.split(maxsplit=1))
        elif line:
            self._answer(line)

    def _command(self, name: str, text: str = "") -> None:
        match name:
            case "/help":
                self._console.print(_HELP, highlight=False)
            case "/stats":
                table = self._statistics.table()
                self._console.print(table or "No answer has ended yet.", highlight=False)
            case "/system":
                self._system = text
                self._note("The instructions hold from the next answer on." if text else "Removed.")
            case "/clear":
                self._turns.clear()
                self._note("The conversation is empty.")
            case "/drafts":
                self._drafts = not self._drafts
                self._note(f"Drafts are {'shown' if self._drafts else 'hidden'}.")
            case "/quit":
                raise _Quit
            case _:
                self._note(f"{name} is no command; /help lists them.")

    def _answer(self, text: str) -> None:
        """Show the model's answer to a message. Both are part of the conversation then.

        If the answer fails, the message is not: it can be sent again. Raises ServerError then if
        there is no terminal, and KeyboardInterrupt after Ctrl-C.
        """
        self._statistics.begin()
        self._turns.append({"role": "user", "content": text})
        parts: list[str] = []
        try:
            with self._view() as view:
                self._show(view, parts)
        except ServerError as error:
            if not self._is_live:
                raise
            self._console.print(f"easel: {error}", style="red", markup=False, highlight=False)
        except KeyboardInterrupt:
            if not self._is_live:
                raise
            self._note("Stopped.")
        if parts:
            self._turns.append({"role": "assistant", "content": "".join(parts)})
        else:
            self._turns.pop()
        if self._is_live and self._statistics.line:
            self._note(self._statistics.line)

    def _show(self, view: AnswerView, parts: list[str]) -> None:
        """Show an answer's events, and add its text to `parts`."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        drafts = self._drafts and self._is_live
        with closing(self._server.answer([*system, *self._turns], drafts=drafts)) as events:
            for event in events:
                match event:
                    case Added(text=text, is_thought=is_thought):
                        view.add(text, is_thought=is_thought)
                        if not is_thought:
                            parts.append(text)
                    case Frame():
                        view.draft(event)
                        self._statistics.add(event)
                    case Ended():
                        self._statistics.add(event)

    def _view(self) -> AnswerView:
        return LiveView(self._console) if self._is_live else PlainView(self._console)

    def _note(self, text: str) -> None:
        if self._is_live:
            self._console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def _typed_lines() -> Iterator[str]:
    """Yields lines until Ctrl-D. Ctrl-C drops the line that is being typed."""
    while True:
        try:
            yield input(_PROMPT)
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Load the lines of earlier chats into the line editor, and save them with the new ones."""
    try:
        import readline
    except ImportError:  # a Python that was built without it
        yield
        return
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    file = Path(state) / "easel" / "chat_history"
    readline.set_history_length(_MOST_LINES)
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a home that can't be written
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            readline.write_history_file(file)
            file.chmod(0o600)
