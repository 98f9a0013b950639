"""The real worker process with its real socket, but without a front end."""

import json
import os
import signal
import subprocess
import sys

import pytest
import zmq

from bench.random_model import Shape, write_random_model
from engine.messages import (
    Block,
    Cancel,
    Cancelled,
    GenerateRequest,
    Loading,
    Ready,
    Sampling,
    decode_from_worker,
    encode,
)

STARTED_IN_TIME_S = 60


class Process:
    """A worker process, started in the same way as by the front end."""

    def __init__(self, folder, config):
        self.path = folder / "worker.sock"
        address = f"ipc://{self.path}"
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.bind(address)
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "engine", address],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.popen.stdin.write(json.dumps(config) + "\n")
        self.popen.stdin.flush()

    def receive(self):
        assert self.socket.poll(STARTED_IN_TIME_S * 1000), "the worker sent no message"
        return decode_from_worker(self.socket.recv())

    def until(self, kind):
        """Returns the messages up to the first of this kind."""
        messages = [self.receive()]
        while not isinstance(messages[-1], kind):
            messages.append(self.receive())
        return messages

    def answer(self):
        """Returns the blocks of an answer up to its last one."""
        blocks = [self.until(Block)[-1]]
        while blocks[-1].finish_reason is None:
            blocks.append(self.until(Block)[-1])
        return blocks

    def send(self, message):
        self.socket.send(encode(message))

    def close(self):
        self.popen.kill()
        self.popen.wait()
        self.popen.stdin.close()
        self.popen.stderr.close()
        self.socket.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_random_model(tmp_path_factory.mktemp("tiny"), Shape(layers="sf", canvas=8))


@pytest.fixture
def start(tmp_path, model):
    started = []

    def start(**config):
        private = tmp_path / f"private-{len(started)}"
        private.mkdir()
        started.append(Process(private, {"model": str(model), "device": "cpu", **config}))
        return started[-1]

    yield start
    for process in started:
        process.close()


def test_a_ready_worker_reports_its_limits(start):
    *before, ready = start(max_context=100).until(Ready)
    assert all(isinstance(message, Loading) for message in before)
    assert (ready.context_length, ready.canvas_length, ready.vocab_size) == (100, 8, 160)
    assert ready.dtype == "float32"
    assert ready.profile == "none"


def test_a_worker_uses_its_profile_but_explicit_options_override_it(start):
    *_, ready = start(profile="demo", max_active=1).until(Ready)
    assert ready.context_length == 512  # the model's own limit
    assert ready.profile.startswith("demo: quantize_experts none, ")
    assert ready.profile.endswith("(set explicitly: max_active)")


def test_an_answer_arrives_in_blocks_of_which_the_last_has_the_reason(start):
    process = start()
    process.until(Ready)
    process.send(GenerateRequest("a", [7, 8, 9], 20, Sampling(seed=0)))
    blocks = process.answer()
    assert [(block.id, block.index) for block in blocks] == [("a", at) for at in range(len(blocks))]
    assert sum(len(block.tokens) for block in blocks) <= 20


def test_a_cancel_ends_a_running_request_and_the_next_one_runs(start):
    process = start()
    process.until(Ready)
    process.send(GenerateRequest("long", [7], 500, Sampling(seed=0)))
    process.send(Cancel("long"))
    process.send(GenerateRequest("short", [7], 1, Sampling(seed=0)))
    assert process.until(Cancelled)[-1] == Cancelled("long")
    (block,) = process.answer()
    assert (block.id, block.finish_reason) == ("short", "length")


def test_the_end_of_stdin_ends_the_worker_and_removes_its_socket(start):
    process = start()
    process.until(Ready)
    process.popen.stdin.close()
    assert process.popen.wait(STARTED_IN_TIME_S) == 0
    assert not process.path.parent.exists()


def test_the_end_of_stdin_ends_a_worker_that_is_still_loading(start):
    process = start()
    process.popen.stdin.close()  # before torch is imported
    assert process.popen.wait(STARTED_IN_TIME_S) == 0
    assert not process.socket.poll(0)


def test_a_worker_ignores_signals_that_are_sent_to_its_whole_process_group(start):
    process = start()
    process.until(Ready)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.popen.pid, number)
    process.send(GenerateRequest("a", [7], 1, Sampling(seed=0)))
    assert process.answer()[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (
            {"model": "/nowhere"},
            "model '/nowhere': there is no such folder, and it is not a Hugging Face id",
        ),
        ({"device": "cuda"}, "device is 'cuda', but"),
        ({"max_context": 1}, "max_context"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_worker_that_cannot_start_prints_why_without_a_traceback_and_exits(
    start, config, complaint
):
    process = start(**config)
    assert process.popen.wait(STARTED_IN_TIME_S) != 0
    stderr = process.popen.stderr.read()
    assert complaint in stderr
    assert "Traceback" not in stderr
