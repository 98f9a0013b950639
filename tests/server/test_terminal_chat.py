"""`easel chat` in a real terminal and without one, against a real server."""

import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

from tests.counting import count, counted

SECONDS = 60


class Terminal:
    """`easel chat` in a terminal of its own."""

    def __init__(self, *arguments, **variables):
        self._screen = ""
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            os.environ.update({"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"})
            os.environ.update(variables)
            os.execv(sys.executable, [sys.executable, "-m", "app", "chat", *arguments])

    def type(self, text):
        os.write(self._file, text.encode())

    def until(self, pattern):
        """Read until the pattern comes. Returns what came up to its end, and forgets it."""
        deadline = time.monotonic() + SECONDS
        while not (match := re.search(pattern, self._screen)):
            ready, _, _ = select.select([self._file], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not come; this did: {self._screen!r}"
            try:
                self._screen += os.read(self._file, 65536).decode(errors="replace")
            except OSError as error:  # the terminal is closed
                raise AssertionError(f"the chat has ended: {self._screen!r}") from error
        text, self._screen = self._screen[: match.end()], self._screen[match.end() :]
        return text

    def prompted(self):
        """Wait until the chat reads a line. Before that, the terminal itself would take Ctrl-D."""
        self.until("> ")

    def end(self):
        """Returns the exit code, after what was typed has ended the chat."""
        while True:
            try:
                if not os.read(self._file, 65536):
                    break
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        os.close(self._file)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def chat(tmp_path):
    """Returns a function that starts a chat with a server."""
    started = []

    def start(server, *arguments, **variables):
        home = {"XDG_STATE_HOME": str(tmp_path), "EASEL_API_KEY": ""}
        terminal = Terminal("--url", server.url, *arguments, **{**home, **variables})
        started.append(terminal)
        terminal.until("/help lists the commands")
        terminal.prompted()
        return terminal

    yield start
    for terminal in started:
        try:
            os.kill(terminal.pid, 9)
            os.waitpid(terminal.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def test_a_conversation_shows_drafts_answers_and_figures(demo_server, chat):
    terminal = chat(demo_server)
    terminal.type(f"{count(2)}\r")
    # A draft is removed before the block stands in its place.
    answer = terminal.until("tokens/s")
    assert answer.count("\x1b[2K") >= 2
    assert re.sub(r"\x1b\[[\d;]*m", "", answer).count(counted(2)[-10:]) >= 2
    terminal.type("/stats\r")
    table = terminal.until("all answers")
    assert re.search(r"blocks +2 ", table)
    assert re.search(r"block 1 +\d+ steps, final tokens after each", table)
    terminal.type("/quit\r")
    assert terminal.end() == 0


def test_drafts_can_be_hidden(demo_server, chat):
    drawn = {}
    for drafts in (False, True):
        terminal = chat(demo_server, "--no-drafts")
        if drafts:
            terminal.type("/drafts\r")
            terminal.until("Drafts are shown")
        # The blocks take several steps, because the question is none that the model knows.
        terminal.type("Tell me a long story about a fox and a very old owl\r")
        drawn[drafts] = terminal.until("tokens/s").count("\x1b[2K")
    assert drawn[False] < drawn[True]


def test_ctrl_c_stops_the_answer_and_not_the_chat(server, chat):
    terminal = chat(server)
    terminal.type("Tell me more\r")
    terminal.until(r"\x1b\[2K")  # something was drawn
    terminal.type("\x03")
    terminal.until("Stopped")
    terminal.prompted()
    server.wait_until_idle()
    terminal.type("half a line\x03")
    terminal.prompted()
    terminal.type("/system Be brief\r")
    terminal.until("from the next answer on")
    terminal.prompted()
    terminal.type("\x04")
    assert terminal.end() == 0


def test_earlier_lines_come_back_with_the_arrow_keys_also_in_the_next_chat(demo_server, chat):
    terminal = chat(demo_server)
    terminal.type("Count to 3\r")
    terminal.until("tokens/s")
    terminal.prompted()
    terminal.type("\x1b[A")
    terminal.until("Count to 3")
    terminal.type("\r")
    terminal.until("tokens/s")
    terminal.prompted()
    terminal.type("\x04")
    assert terminal.end() == 0
    again = chat(demo_server)
    again.type("\x1b[A")
    again.until("Count to 3")


def test_an_error_of_the_server_is_shown_and_the_chat_goes_on(shared_server, chat):
    terminal = chat(shared_server(EASEL_MODEL="demo", EASEL_MAX_BODY_BYTES="2000"))
    terminal.type("word " * 500 + "\r")
    terminal.until(r"status 413")
    terminal.until("> ")
    terminal.type("Count to 3\r")
    terminal.until("tokens/s")
    terminal.type("/clear\r")
    terminal.until("The conversation is empty")
    terminal.type("/nonsense\r")
    terminal.until("/nonsense is no command")


def piped(url, text, *arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", "app", "chat", "--url", url, *arguments],
        input=text,
        capture_output=True,
        text=True,
        env={**os.environ, "EASEL_API_KEY": "", **variables},
        timeout=SECONDS,
        check=False,
    )


def test_without_a_terminal_each_line_is_answered_by_nothing_but_its_answer(demo_server):
    result = piped(demo_server.url, "Count to 3\n\n/clear\nCount to 5\n")
    assert (result.stdout, result.stderr, result.returncode) == ("1, 2, 3\n1, 2, 3, 4, 5\n", "", 0)


def test_the_api_key_of_the_environment_is_sent(shared_server):
    server = shared_server(EASEL_MODEL="demo", EASEL_API_KEY="secret")
    refused = piped(server.url, "Count to 3\n")
    assert refused.returncode == 2
    assert refused.stderr == (
        "easel: the server needs an API key; set EASEL_API_KEY to one of its keys\n"
    )
    assert piped(server.url, "Count to 3\n", EASEL_API_KEY="secret").stdout == "1, 2, 3\n"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "ftp://127.0.0.1", "nonsense", "http://["])
def test_a_server_that_cannot_be_reached_is_an_error_that_names_it(url):
    result = piped(url, "Count to 3\n")
    assert result.returncode == 2
    assert result.stderr.startswith("easel: ")
    assert url in result.stderr
    assert "Traceback" not in result.stderr


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(demo_server):
    result = piped(demo_server.url, "Count to 3\n", http_proxy="http://127.0.0.1:1")
    assert (result.stdout, result.stderr) == ("1, 2, 3\n", "")


def test_a_failed_answer_without_a_terminal_is_an_error(demo_server):
    result = piped(demo_server.url, "word " * 3000)
    assert result.returncode == 1
    assert "context" in result.stderr
