"""However one of the two processes dies, the other one ends and no file stays behind."""

import os
import select
import signal

import pytest

from app.engine_client.private_folder import PREFIX
from tests.polling import wait_until


def ends(descriptor):
    """Returns whether the process ends within 30 s."""
    return bool(select.select([descriptor], [], [], 30)[0])


@pytest.fixture
def private(tmp_path):
    """The folder in which the servers of the test make their private folders."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


@pytest.fixture
def start(start_server, private):
    return lambda: start_server(TMPDIR=str(private))


@pytest.mark.parametrize("loaded", [True, False])
def test_a_killed_front_end_leaves_neither_worker_nor_socket(start, private, loaded):
    server = start()
    if loaded:
        server.wait_until_ready()
    wait_until(lambda: list(private.glob(f"{PREFIX}*/*.sock")))
    (worker_pid, *_) = wait_until(lambda: worker_pids(server))
    worker = os.pidfd_open(worker_pid)
    server.kill()
    assert ends(worker), "the worker outlived the front end"
    os.close(worker)
    assert list(private.glob(f"{PREFIX}*")) == []


def test_a_stopped_worker_does_not_outlive_a_killed_front_end(start, private):
    server = start().wait_until_ready()
    with server.stopped_worker() as worker_pid:
        worker = os.pidfd_open(worker_pid)
        server.kill()
        assert ends(worker), "the worker outlived the front end"
    os.close(worker)
    assert list(private.glob(f"{PREFIX}*")) == []


def test_the_next_start_removes_what_a_kill_of_both_processes_left(start, private):
    server = start().wait_until_ready()
    os.kill(server.process.pid, signal.SIGSTOP)  # so that it cannot start another worker
    worker = os.pidfd_open(server.worker_pid())
    server.kill_worker()
    assert ends(worker)
    os.close(worker)
    server.kill()
    (left,) = private.glob(f"{PREFIX}*")
    server = start().wait_until_ready()
    assert not left.exists()
    assert server.stop() == 0
    assert list(private.glob(f"{PREFIX}*")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_ended_by_a_signal_leaves_neither_worker_nor_folder(start, private, number):
    server = start().wait_until_ready()
    worker = os.pidfd_open(server.worker_pid())
    server.process.send_signal(number)
    assert server.process.wait(60) == 0
    assert ends(worker)
    os.close(worker)
    assert list(private.glob(f"{PREFIX}*")) == []


def worker_pids(server):
    with open(f"/proc/{server.process.pid}/task/{server.process.pid}/children") as children:
        return [int(pid) for pid in children.read().split()]
