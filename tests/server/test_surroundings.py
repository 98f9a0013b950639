"""The server keeps standing in odd surroundings: no place for its log, no files, no folders."""

import fcntl
import os
import pty
import re
import resource
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from tests.polling import wait_until
from tests.running_server import Server

ROOT = Path(__file__).parents[2]
QUESTION = {"prompt": "Count", "max_tokens": 1}


class Unlogged(Server):
    """A server whose stderr is `stderr`, or closed. Its port is found without a log."""

    def __init__(self, stderr, **settings):
        variables = {"EASEL_PORT": "0", "EASEL_THREADS": "1", **settings}
        self.log = Path(os.devnull)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve"],
            env={**os.environ, "TRITON_INTERPRET": "0", **variables},
            stderr=stderr,
            stdout=subprocess.DEVNULL,
            preexec_fn=(lambda: os.close(2)) if stderr is None else None,
            start_new_session=True,
        )

    @property
    def url(self):
        return f"http://127.0.0.1:{self._wait_until(self._listening_port)}"

    def _listening_port(self):
        inodes = set()
        for file in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(OSError):
                inodes.update(re.findall(r"socket:\[(\d+)\]", os.readlink(file)))
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, _, state, *fields = line.split()
            if state == "0A" and fields[5] in inodes:
                return int(local.rpartition(":")[2], 16)
        return None


def ask(server):
    assert server.http.post("/v1/completions", json=QUESTION).status_code == 200


def check_that_a_dead_worker_is_replaced(server):
    before = server.worker_pid()
    ask(server)
    assert server.worker_pid() == before
    server.kill_worker()
    wait_until(lambda: not server.is_ready())
    server.wait_until_ready()
    ask(server)
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("place", "log_format"),
    [
        ("full disk", "text"),
        ("full disk", "json"),
        ("reader left", "text"),
        ("closed terminal", "text"),
        ("closed", "text"),
    ],
)
def test_a_log_that_cannot_be_written_does_not_disturb_the_server(model_folder, place, log_format):
    with ExitStack() as stack:
        reader = None
        match place:
            case "full disk":
                writer = os.open("/dev/full", os.O_WRONLY)
            case "reader left":
                reader, writer = os.pipe()
            case "closed terminal":
                reader, writer = pty.openpty()
            case _:
                writer = None
        server = Unlogged(writer, EASEL_MODEL=str(model_folder), EASEL_LOG_FORMAT=log_format)
        stack.callback(server.kill)
        if place == "closed terminal":
            server.wait_until_ready()
        for descriptor in (reader, writer):
            if descriptor is not None:
                os.close(descriptor)
        server.wait_until_ready()
        check_that_a_dead_worker_is_replaced(server)


def test_a_log_reader_that_stands_still_does_not_disturb_the_server(model_folder):
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    server = Unlogged(writer, EASEL_MODEL=str(model_folder))
    os.close(writer)
    try:
        server.wait_until_ready()
        for _ in range(30):  # each has a line of the log
            ask(server)
        check_that_a_dead_worker_is_replaced(server)
    finally:
        server.kill()
        os.close(reader)


def test_what_the_worker_prints_on_stdout_is_a_line_of_the_log(start_server):
    server = start_server().wait_until_ready()
    Path(f"/proc/{server.worker_pid()}/fd/1").write_text("printed by a library\n")
    wait_until(lambda: "WARNING engine [-] printed by a library" in server.log.read_text())


def test_the_worker_imports_nothing_from_the_current_folder(model_folder, tmp_path):
    trace = tmp_path / "imported"
    foreign = f"open({str(trace)!r}, 'w')\nraise SystemExit('foreign code')\n"
    folder = tmp_path / "current"
    for module in (
        "engine/__init__.py",
        "engine/__main__.py",
        "random.py",
        "torch.py",
        "msgspec.py",
    ):
        (folder / module).parent.mkdir(parents=True, exist_ok=True)
        (folder / module).write_text(foreign)
    log = tmp_path / "log"
    # As the installed command `easel` does, this imports `app` without the current folder.
    command = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from app.__main__ import main; main()"
    )
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", command, str(ROOT), "serve"],
            env={
                **os.environ,
                "EASEL_PORT": "0",
                "EASEL_THREADS": "1",
                "EASEL_MODEL": str(model_folder),
            },
            cwd=folder,
            stderr=output,
        )
    try:
        wait_until(lambda: "Easel listens on" in log.read_text() or process.poll() is not None, 90)
        assert process.poll() is None, log.read_text()
        assert not trace.exists()
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("removed", ["the private folder", "TMPDIR"])
def test_a_removed_folder_for_the_socket_is_made_anew(start_server, tmp_path, removed):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    server = start_server(TMPDIR=str(temporary)).wait_until_ready()
    (private,) = temporary.iterdir()
    shutil.rmtree(private if removed == "the private folder" else temporary)
    check_that_a_dead_worker_is_replaced(server)
    assert list(temporary.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_tried_again(start_server, tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    server = start_server(TMPDIR=str(temporary)).wait_until_ready()
    shutil.rmtree(temporary)
    temporary.write_text("a file where the folder was")
    server.kill_worker()
    wait_until(lambda: "the worker cannot be started" in server.log.read_text())
    assert server.http.get("/health/live").status_code == 200
    temporary.unlink()
    server.wait_until_ready()
    ask(server)


def test_a_worker_is_replaced_while_clients_hold_all_connections(start_server):
    server = start_server().wait_until_ready()
    hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (128, hard))
    with ExitStack() as stack:
        http = stack.enter_context(httpx.Client(base_url=server.url, timeout=60))
        assert http.get("/health/live").status_code == 200  # this connection is kept
        for _ in range(150):
            stack.enter_context(socket.create_connection(("127.0.0.1", int(server.port))))
        wait_until(lambda: "only the reserve of descriptors is free" in server.log.read_text())
        server.kill_worker()
        wait_until(lambda: http.get("/health/ready").status_code == 503)
        wait_until(lambda: http.get("/health/ready").status_code == 200, 90)
        assert http.post("/v1/completions", json=QUESTION).status_code == 200
    server.wait_until_ready()


def test_a_worker_for_which_no_file_can_be_opened_is_tried_again(start_server):
    server = start_server().wait_until_ready()
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    open_files = len(os.listdir(f"/proc/{server.process.pid}/fd"))
    server.kill_worker()
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (open_files - 6, limits[1]))
    wait_until(lambda: "Too many open files; a new one starts in" in server.log.read_text())
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
    server.wait_until_ready()
    ask(server)
