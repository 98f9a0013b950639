"""Clients that go away, close half of their connection or read too slowly, on real sockets."""

import contextlib
import json
import os
import signal
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from tests.server.test_life import LONG, ended, in_flight

# 6,400 tokens with 20 alternatives each, 10 MB: more than a socket's buffers hold.
LARGE = {
    **LONG,
    "stream": True,
    "n": 16,
    "max_tokens": 400,
    "ignore_eos": True,
    "logprobs": True,
    "top_logprobs": 20,
}


def sent(server, body, *, receive_bytes=None):
    """A socket on which this was asked."""
    where = urlsplit(server.url)
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(60)
    connection.connect((where.hostname, where.port))
    text = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {where.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    connection.sendall(head.encode() + text)
    return connection


def read_until(connection, wanted):
    """What came, up to this and some more."""
    came = bytearray()
    while wanted not in came[-131072:]:
        part = connection.recv(65536)
        assert part, came
        came += part
    return bytes(came)


def rest(connection):
    came = b""
    while part := connection.recv(65536):
        came += part
    return came


@contextlib.contextmanager
def held(server):
    """The worker does nothing meanwhile, so that what happens happens before its next step."""
    worker = server.worker_pid()
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


def settled(http, server):
    """How many have ended, by outcome, once nobody is in flight."""
    # What comes next waits for the worker, so it comes after the cancel.
    http.post("/v1/chat/completions", json={**LONG, "max_tokens": 1}).raise_for_status()
    while in_flight(http):
        time.sleep(0.01)
    return ended(http)


def wait_for(http, count):
    while f"easel_requests_in_flight {count}.0" not in http.get("/metrics").text:
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_a_client_that_goes_before_the_first_block_is_cancelled(server, http, stream, half):
    before = ended(http).get("cancelled", 0)
    with held(server):
        connection = sent(server, {**LONG, "stream": stream})
        wait_for(http, 1)
        if half:
            connection.shutdown(socket.SHUT_WR)
            rest(connection)  # the server closes its half: nothing more comes
        connection.close()
    assert settled(http, server)["cancelled"] == before + 1


@pytest.mark.parametrize("half", [True, False])
def test_a_client_that_goes_between_blocks_is_cancelled(server, http, half):
    before = ended(http).get("cancelled", 0)
    connection = sent(server, {**LONG, "stream": True, "ignore_eos": True})
    read_until(connection, b'"content": "')
    with held(server):
        if half:
            connection.shutdown(socket.SHUT_WR)
            assert b"[DONE]" not in rest(connection)
        connection.close()
    assert settled(http, server)["cancelled"] == before + 1


def test_each_of_several_answers_to_one_client_is_cancelled(server, http):
    before = ended(http).get("cancelled", 0)
    with held(server):
        connection = sent(server, {**LONG, "n": 6})  # more than denoise together
        wait_for(http, 6)
        connection.close()
    assert settled(http, server)["cancelled"] == before + 6


def test_a_reader_that_stops_blocks_nobody_and_its_answer_still_waits_for_it(server, http):
    tasks, before = idle_tasks(http), ended(http)
    with contextlib.closing(sent(server, LARGE, receive_bytes=4096)) as connection:
        begun = read_until(connection, b'"content": "')
        after = settled(http, server)  # others are answered, and the worker is free of it
        assert sum(after.values()) == sum(before.values()) + LARGE["n"] + 1
        assert after.get("cancelled", 0) == before.get("cancelled", 0)
        assert event_loop_tasks(http) > tasks  # what it has not read yet waits
        whole = begun + read_until(connection, b"data: [DONE]")
    assert whole.count(b'"finish_reason": "') == LARGE["n"]


def test_a_reader_that_stops_and_goes_leaves_nothing_behind(server, http):
    tasks = idle_tasks(http)
    with contextlib.closing(sent(server, LARGE, receive_bytes=4096)) as connection:
        read_until(connection, b'"content": "')
        settled(http, server)
        assert event_loop_tasks(http) > tasks
    while event_loop_tasks(http) > tasks:
        time.sleep(0.01)


def test_a_reader_that_never_goes_on_is_gone_when_an_answer_may_last_no_longer(start_server):
    server = start_server(EASEL_REQUEST_TIMEOUT_S="3")
    server.wait_until_ready()
    with httpx.Client(base_url=server.url, timeout=60) as http:
        tasks = idle_tasks(http)
        with contextlib.closing(
            sent(server, {**LARGE, "timeout": 600}, receive_bytes=4096)
        ) as connection:
            read_until(connection, b'"content": "')
            while event_loop_tasks(http) > tasks:
                time.sleep(0.01)
            with pytest.raises(ConnectionResetError):
                rest(connection)


def idle_tasks(http):
    """How many there are when nobody asks; a library's own is there from the first stream on."""
    body = {**LONG, "max_tokens": 1, "stream": True}
    http.post("/v1/chat/completions", json=body).raise_for_status()
    return event_loop_tasks(http)


def event_loop_tasks(http):
    lines = http.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("easel_event_loop"))


def test_a_slow_reader_gets_all_of_its_answer(server):
    body = {**LONG, "max_tokens": 100, "stream": True}
    expected = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).text
    connection = sent(server, body, receive_bytes=4096)
    came = b""
    while b"[DONE]" not in came:
        came += connection.recv(64)
    connection.close()
    assert texts(came.decode()) == texts(expected)


def texts(stream):
    lines = [line[6:] for line in stream.splitlines() if line.startswith("data: {")]
    return [json.loads(line)["choices"][0]["delta"].get("content") for line in lines]
