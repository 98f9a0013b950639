"""Commands that are printed to be pasted, and the line of progress on a terminal and in a file."""

import logging
import os
import pty
import sys
from contextlib import contextmanager
from io import StringIO

import pytest
from rich.console import Console

from app import terminal
from app.logs import _StderrHandler
from app.terminal import ProgressLine, command_line, stderr_console

_ERASE, _UP = "\x1b[2K", "\x1b[1A"  # erase the cursor's line; move the cursor up


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets: a list with the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def file_console(**options):
    return Console(file=StringIO(), highlight=False, soft_wrap=True, **options)


@pytest.mark.parametrize("options", [{}, {"force_terminal": True}])
def test_in_a_file_the_line_is_printed_at_once_and_then_now_and_then(clock, options):
    console = file_console(**options)
    with ProgressLine(console, animated=True) as progress:
        for second in range(25):
            clock[0] = 1000.0 + second
            progress.show(f"loading: {second} %")
    assert console.file.getvalue().splitlines() == [
        "easel: loading: 0 %",
        "easel: loading: 10 %",
        "easel: loading: 20 %",
    ]


def test_a_quick_start_has_no_line_in_a_file(clock):
    console = file_console()
    with ProgressLine(console, animated=True, first_s=10) as progress:
        for second in (0, 9, 10):
            clock[0] = 1000.0 + second
            progress.show(f"loading: {second} %")
    assert console.file.getvalue() == "easel: loading: 10 %\n"


@contextmanager
def terminal_as_stderr(monkeypatch):
    """Yields a function that reads what is written to the terminal, up to a given end."""
    ours, theirs = pty.openpty()
    with monkeypatch.context() as patched, open(theirs, "w", buffering=1) as stderr:
        patched.setenv("TERM", "xterm")
        patched.setattr("sys.stderr", stderr)

        def written(end):
            text = ""
            while not text.endswith(end):
                text += os.read(ours, 65536).decode()
            return text

        yield written
    os.close(ours)


def test_on_a_terminal_the_line_is_removed_and_the_cursor_stays(monkeypatch):
    with terminal_as_stderr(monkeypatch) as written:
        with ProgressLine(stderr_console(), animated=False) as progress:
            progress.show("loading the model: 1 %")
            progress.show("loading the model: 2 %")
        text = written(f"2 %\r\n\r{_UP}{_ERASE}")
    assert "1 %" in text
    assert "\x1b[?25l" not in text  # hides the cursor


def test_a_known_share_is_drawn_as_a_bar_on_a_terminal_only(monkeypatch):
    with terminal_as_stderr(monkeypatch) as written:
        with ProgressLine(stderr_console(), animated=False) as progress:
            progress.show("loading the model", 0.25)
        assert f"{'█' * 6}{'░' * 18} loading the model" in written(f"\r{_UP}{_ERASE}")
    console = file_console()
    with ProgressLine(console, animated=False) as progress:
        progress.show("loading the model", 0.25)
    assert console.file.getvalue() == "easel: loading the model\n"


def test_the_log_is_written_above_the_line(monkeypatch):
    handler = _StderrHandler()
    with (
        terminal_as_stderr(monkeypatch) as written,
        ProgressLine(stderr_console(), animated=False) as progress,
    ):
        progress.show("loading the model")
        written(f"{_ERASE}loading the model")  # the line is drawn twice when it begins
        handler.handle(logging.makeLogRecord({"msg": "a line of the log"}))
        text = written("loading the model")
    assert text == f"\r{_ERASE}a line of the log\r\nloading the model"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An `easel` in a folder that the shell searches, and another one that it does not find."""
    found, hidden = tmp_path / "bin/easel", tmp_path / "my venv/easel"
    for file in (found, hidden):
        file.parent.mkdir()
        file.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(found.parent))
    return found, hidden


def test_a_printed_command_runs_the_easel_that_printed_it(installed, monkeypatch):
    found, hidden = installed
    printed = []
    for program in (found, hidden, "app/__main__.py"):
        monkeypatch.setattr("sys.argv", [str(program)])
        printed.append(command_line("serve"))
    assert printed == ["easel serve", f"'{hidden}' serve", f"{sys.executable} -m app serve"]
