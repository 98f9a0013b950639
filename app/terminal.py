"""What commands show on stderr besides the log: their own lines, and one line of progress.

It does not know what is done meanwhile. On a terminal the line of progress is redrawn in place. In
a file it is printed now and then, so that a log stays short.
"""

import shlex
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console

_EVERY_S = 10.0  # between two lines of progress in a file
_BAR = 24  # characters


class _Stderr(Console):
    """A console on stderr that never hides the cursor.

    Ctrl-C may end the process at once, which would leave the terminal without a cursor.
    """

    def __init__(self) -> None:
        # Lines are not wrapped, because a wrapped path or curl line could not be pasted.
        super().__init__(stderr=True, highlight=False, soft_wrap=True)

    def show_cursor(self, _show: bool = True) -> bool:
        return False


def stderr_console() -> Console:
    """Returns a console that prints lines on stderr as they are."""
    return _Stderr()


def command_line(arguments: str) -> str:
    """Returns the line that runs `easel` with these arguments in the shell that ran this process.

    The shell may not find `easel` itself: `make serve` runs `.venv/bin/easel`.
    """
    found = shutil.which("easel")
    if found is not None and Path(found).resolve() == Path(sys.argv[0]).resolve():
        return f"easel {arguments}"
    if Path(sys.argv[0]).name == "easel":
        return f"{shlex.quote(sys.argv[0])} {arguments}"
    return f"{shlex.quote(sys.executable)} -m app {arguments}"


class ProgressLine:
    """The line that says what a command is doing. Use it as a context manager.

    Lines may be printed on the console and on `sys.stderr` while it is shown. Hide it before
    anything is printed elsewhere.
    """

    def __init__(self, console: Console, *, animated: bool, first_s: float = 0.0) -> None:
        """With `animated`, a thread redraws the line all the time, with the time that has passed.

        In a file, the first line is printed after `first_s` seconds at the earliest.
        """
        # Imported here, because most commands have no progress to show.
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = console
        # With FORCE_COLOR set, a file counts as a terminal for the console.
        terminal = console.is_terminal and not console.is_dumb_terminal
        self._redraws = terminal and console.file.isatty()
        text = TextColumn("{task.description}", markup=False)
        self._drawn = Progress(
            *((SpinnerColumn("line"), text, TimeElapsedColumn()) if animated else (text,)),
            console=console,
            auto_refresh=animated,
            transient=True,
            redirect_stdout=False,
            disable=not self._redraws,
        )
        self._task = self._drawn.add_task("")
        self._next_at = time.monotonic() + first_s

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *_error: object) -> None:
        self.hide()

    def show(self, text: str, share: float | None = None) -> None:
        """Show what is being done now, on a terminal with a bar if the `share` done is known."""
        if self._redraws:
            if share is not None:
                full = round(share * _BAR)
                text = f"{'█' * full}{'░' * (_BAR - full)} {text}"
            if not self._drawn.live.is_started:
                self._drawn.reset(self._task)
            self._drawn.update(self._task, description=text)
            self._drawn.start()
            self._drawn.refresh()
        elif time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + _EVERY_S
            self._console.print(f"easel: {text}", markup=False)

    def hide(self) -> None:
        """Remove the line from the terminal, until it is shown again."""
        self._drawn.stop()
