"""Workers that die at the worst moment, that hang, or that die of certain requests.

The faults are put into the real worker process by a module that Python imports at its start.
"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.polling import wait_until
from tests.running_server import begun

ROOT = Path(__file__).parents[2]
CHAT = {"messages": [{"role": "user", "content": "Count"}], "max_tokens": 200}

IN_THE_WORKER = """
import os, pathlib, sys
if "engine" in sys.orig_argv:
    import engine.worker
    from engine.messages import Block, Cancel
    from engine.worker import Worker
    FIRST = not pathlib.Path({flag!r}).exists()  # whether this is the first worker
    pathlib.Path({flag!r}).touch()
{fault}
"""

DIES_BEHIND_THE_LAST_BLOCK = """
    import zmq
    from engine.messages import decode_from_worker
    send, context = zmq.Socket.send, zmq.Context.instance()
    def send_and_die(socket, frame):
        send(socket, frame)
        message = decode_from_worker(frame)
        if FIRST and isinstance(message, Block) and message.finish_reason:
            socket.close(linger=10_000)
            context.term()  # returns when the front end has the frame
            os._exit(9)
    zmq.Socket.send = send_and_die
"""
DIES_OF_SEED_13 = """
    run = Worker.run
    def run_or_die(worker, works):
        if any(w.sequence.request.sampling.seed == 13 and w.sequence.encoded for w in works):
            os._exit(9)
        return run(worker, works)
    Worker.run = run_or_die
"""
DIES_OF_SEEDS_1_AND_2_TOGETHER = """
    run = Worker.run
    def run_or_die(worker, works):
        if {1, 2} <= {w.sequence.request.sampling.seed for w in works}:
            os._exit(9)
        return run(worker, works)
    Worker.run = run_or_die
"""
HANGS_OF_SEED_13 = DIES_OF_SEED_13.replace("os._exit(9)", "__import__('time').sleep(1e6)")
ANSWERS_NO_CANCEL = """
    import time
    handle, run, silent = Worker.handle, Worker.run, []
    def ignore_cancel(worker, message):
        if FIRST and isinstance(message, Cancel):
            silent.append(message)
            return []
        return handle(worker, message)
    def run_nothing(worker, works):
        if silent:
            time.sleep(0.01)
            return []
        return run(worker, works)
    Worker.handle, Worker.run = ignore_cancel, run_nothing
"""


@pytest.fixture
def start_faulty(start_server, tmp_path):
    """Returns a function that starts a ready server whose workers have a fault."""

    def start(fault, **settings):
        folder = tmp_path / "faults"
        folder.mkdir()
        module = IN_THE_WORKER.format(flag=str(tmp_path / "flag"), fault=fault)
        (folder / "sitecustomize.py").write_text(module)
        path = os.pathsep.join([str(folder), str(ROOT)])
        return start_server(PYTHONPATH=path, **settings).wait_until_ready()

    return start


def starts(server):
    return server.metrics()[("easel_worker_starts_total",)]


def post(server, **fields):
    return httpx.post(f"{server.url}/v1/chat/completions", json={**CHAT, **fields}, timeout=120)


def answer(response):
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return choice["message"]["content"], choice["finish_reason"], response.json()["usage"]


def test_an_answer_whose_worker_dies_behind_its_last_block_has_ended(server, start_faulty):
    # An end token of random weights ends the second answer, so both reasons occur.
    bodies = [{"seed": 1, "max_tokens": 40}, {"seed": 5, "stop_token_ids": list(range(50, 114))}]
    expected = [answer(post(server, **body)) for body in bodies]
    assert [reason for _, reason, _ in expected] == ["length", "stop"]
    faulty = start_faulty(DIES_BEHIND_THE_LAST_BLOCK)
    for body, whole in zip(bodies, expected, strict=True):
        text, reason, usage = answer(post(faulty, **body))
        assert (text, reason) == whole[:2]
        assert usage["completion_tokens"] == whole[2]["completion_tokens"]
        wait_until(lambda: starts(faulty) == 2)  # until then the dead worker may count as ready
        faulty.wait_until_ready()


def test_only_the_request_that_kills_the_worker_fails(server, start_faulty):
    seeds = [1, 2, 13, 3, 4]
    expected = {seed: answer(post(server, seed=seed))[:2] for seed in seeds if seed != 13}
    faulty = start_faulty(DIES_OF_SEED_13)
    with ThreadPoolExecutor(len(seeds)) as pool, faulty.stopped_worker():
        answers = {seed: pool.submit(post, faulty, seed=seed) for seed in seeds}
        wait_until(lambda: faulty.in_flight() == len(seeds))
        os.kill(faulty.worker_pid(), signal.SIGCONT)
        guilty = answers.pop(13).result()
        assert guilty.json()["error"]["code"] == "worker_died"
        assert {seed: answer(each.result())[:2] for seed, each in answers.items()} == expected
    wait_until(lambda: starts(faulty) == 3)


def test_requests_that_kill_the_worker_only_together_both_get_their_answers(server, start_faulty):
    expected = [answer(post(server, seed=seed))[:2] for seed in (1, 2)]
    faulty = start_faulty(DIES_OF_SEEDS_1_AND_2_TOGETHER)
    with ThreadPoolExecutor(2) as pool, faulty.stopped_worker():
        both = [pool.submit(post, faulty, seed=seed) for seed in (1, 2)]
        wait_until(lambda: faulty.in_flight() == 2)
        os.kill(faulty.worker_pid(), signal.SIGCONT)
        assert [answer(each.result())[:2] for each in both] == expected
    wait_until(lambda: starts(faulty) == 2)


@pytest.mark.parametrize("idle", [False, True])
def test_a_worker_that_stands_still_is_replaced_and_its_answers_go_on(start_server, idle):
    server = start_server(EASEL_WORKER_SILENCE_S="2").wait_until_ready()
    long = {"seed": 1, "max_tokens": 1500}
    expected = answer(post(server, **long))[:2]
    stopped = server.worker_pid()
    with ThreadPoolExecutor(1) as pool:
        if idle:
            os.kill(stopped, signal.SIGSTOP)
            running = None
        else:
            running = pool.submit(post, server, **long)
            wait_until(lambda: server.metrics()[("easel_requests_running",)] == 1)
            os.kill(stopped, signal.SIGSTOP)
        wait_until(lambda: not server.is_ready())
        refused = post(server)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        server.wait_until_ready()
        running = running or pool.submit(post, server, **long)
        assert answer(running.result())[:2] == expected
    assert server.worker_pid() != stopped
    wait_until(lambda: starts(server) == 2)
    wait_until(
        lambda: "the worker hangs and is killed: it has been silent for" in server.log.read_text()
    )


def test_only_the_request_that_hangs_the_worker_fails(server, start_faulty):
    expected = {seed: answer(post(server, seed=seed))[:2] for seed in (1, 2)}
    faulty = start_faulty(HANGS_OF_SEED_13, EASEL_WORKER_SILENCE_S="1")
    with ThreadPoolExecutor(3) as pool:
        answers = {seed: pool.submit(post, faulty, seed=seed) for seed in (1, 13, 2)}
        assert answers.pop(13).result().json()["error"]["code"] == "worker_died"
        assert {seed: answer(each.result())[:2] for seed, each in answers.items()} == expected
    wait_until(lambda: starts(faulty) == 3)  # the last one may still wait before it starts


def test_a_worker_that_does_not_answer_a_cancel_is_replaced(start_faulty):
    server = start_faulty(ANSWERS_NO_CANCEL, EASEL_WORKER_SILENCE_S="2")
    url, body = f"{server.url}/v1/chat/completions", {**CHAT, "max_tokens": 1500, "stream": True}
    with httpx.stream("POST", url, json=body, timeout=60) as left:
        _lines = begun(left)
        wait_until(lambda: server.metrics()[("easel_requests_running",)] == 1)
    wait_until(lambda: starts(server) == 2)
    server.wait_until_idle()
    assert answer(post(server.wait_until_ready(), seed=1))
    wait_until(lambda: "it has not answered a cancel for" in server.log.read_text())
