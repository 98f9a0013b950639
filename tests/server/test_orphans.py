"""Whichever process dies, and however: the other one ends and nothing stays behind."""

import os
import select
import signal

import pytest

from app.engine_client.private_folder import PREFIX


def ends(descriptor):
    return bool(select.select([descriptor], [], [], 30)[0])


@pytest.fixture
def start(start_server, tmp_path):
    """A server whose private folder is made in a folder of the test's."""
    private = tmp_path / "tmp"
    private.mkdir()

    def start():
        return start_server(TMPDIR=str(private)), private

    return start


@pytest.mark.parametrize("loaded", [True, False])
def test_a_killed_front_end_leaves_neither_worker_nor_socket(start, loaded):
    server, private = start()
    if loaded:
        server.wait_until_ready()
    while not list(private.glob(f"{PREFIX}*/*.sock")):
        pass
    while not (children := worker_pids(server)):
        pass
    worker = os.pidfd_open(children[0])
    server.process.kill()
    server.process.wait()
    assert ends(worker), "the worker outlived the front end"
    os.close(worker)
    assert list(private.glob(f"{PREFIX}*")) == []


def test_a_stopped_worker_does_not_outlive_a_killed_front_end(start):
    server, private = start()
    server.wait_until_ready()
    worker = os.pidfd_open(server.worker_pid())
    os.kill(server.worker_pid(), signal.SIGSTOP)
    server.process.kill()
    server.process.wait()
    assert ends(worker), "the worker outlived the front end"
    os.close(worker)
    assert list(private.glob(f"{PREFIX}*")) == []


def test_when_both_are_killed_the_next_start_removes_what_stayed(start):
    server, private = start()
    server.wait_until_ready()
    os.kill(server.process.pid, signal.SIGSTOP)  # so that it can't start another worker
    worker = os.pidfd_open(server.worker_pid())
    os.kill(server.worker_pid(), signal.SIGKILL)
    assert ends(worker)
    os.close(worker)
    server.process.kill()
    server.process.wait()
    (left,) = private.glob(f"{PREFIX}*")
    server, _ = start()
    server.wait_until_ready()
    assert not left.exists()
    assert server.stop() == 0
    assert list(private.glob(f"{PREFIX}*")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_end_leaves_neither_worker_nor_folder(start, number):
    server, private = start()
    server.wait_until_ready()
    worker = os.pidfd_open(server.worker_pid())
    server.process.send_signal(number)
    assert server.process.wait(60) == 0
    assert ends(worker)
    os.close(worker)
    assert list(private.glob(f"{PREFIX}*")) == []


def worker_pids(server):
    with open(f"/proc/{server.process.pid}/task/{server.process.pid}/children") as children:
        return [int(pid) for pid in children.read().split()]
