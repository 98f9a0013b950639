"""Clients that disconnect, close half of their connection or read too slowly, on real sockets."""

import contextlib
import json
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from tests.polling import wait_until
from tests.server.test_life import LONG

# 6,400 tokens with 20 alternatives each take 10 MB, more than the buffers of a socket hold.
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
    """Returns a socket on which the request was sent."""
    address = urlsplit(server.url)
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(60)
    connection.connect((address.hostname, address.port))
    text = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    connection.sendall(head.encode() + text)
    return connection


def read_until(connection, expected):
    """Returns what was received until `expected` is part of it. It may be followed by more."""
    received = bytearray()
    while expected not in received[-131072:]:
        part = connection.recv(65536)
        assert part, received
        received += part
    return bytes(received)


def read_to_end(connection):
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def settled(server):
    """Returns how many answers have ended, by outcome, when none is in flight any more."""
    # The worker gets this request after the cancels, so it has handled them when it answers.
    body = {**LONG, "max_tokens": 1}
    server.http.post("/v1/chat/completions", json=body).raise_for_status()
    server.wait_until_idle()
    return server.ended()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_a_client_that_disconnects_before_the_first_block_is_cancelled(server, stream, half):
    before = server.ended()["cancelled"]
    with server.stopped_worker():
        connection = sent(server, {**LONG, "stream": stream})
        wait_until(lambda: server.in_flight() == 1)
        if half:
            connection.shutdown(socket.SHUT_WR)
            read_to_end(connection)  # the server closes the connection
        connection.close()
    assert settled(server)["cancelled"] == before + 1


@pytest.mark.parametrize("half", [True, False])
def test_a_client_that_disconnects_between_blocks_is_cancelled(server, half):
    before = server.ended()["cancelled"]
    connection = sent(server, {**LONG, "stream": True, "ignore_eos": True})
    read_until(connection, b'"content": "')
    with server.stopped_worker():
        if half:
            connection.shutdown(socket.SHUT_WR)
            assert b"[DONE]" not in read_to_end(connection)
        connection.close()
    assert settled(server)["cancelled"] == before + 1


def test_all_answers_to_a_client_that_disconnects_are_cancelled(server):
    before = server.ended()["cancelled"]
    with server.stopped_worker():
        connection = sent(server, {**LONG, "n": 6})  # more than are denoised together
        wait_until(lambda: server.in_flight() == 6)
        connection.close()
    assert settled(server)["cancelled"] == before + 6


def test_a_reader_that_pauses_delays_no_other_request_and_gets_all_of_its_answer(server):
    tasks, before = idle_tasks(server), server.ended()
    with contextlib.closing(sent(server, LARGE, receive_bytes=4096)) as connection:
        begun = read_until(connection, b'"content": "')
        after = settled(server)  # another request is answered, and the worker has finished this one
        assert after.total() == before.total() + LARGE["n"] + 1
        assert after["cancelled"] == before["cancelled"]
        assert server.event_loop_tasks() > tasks  # the front end keeps what was not read yet
        whole = begun + read_until(connection, b"data: [DONE]")
    assert whole.count(b'"finish_reason": "') == LARGE["n"]


def test_a_reader_that_pauses_and_disconnects_leaves_nothing_behind(server):
    tasks = idle_tasks(server)
    with contextlib.closing(sent(server, LARGE, receive_bytes=4096)) as connection:
        read_until(connection, b'"content": "')
        settled(server)
        assert server.event_loop_tasks() > tasks
    wait_until(lambda: server.event_loop_tasks() <= tasks)


def test_a_reader_that_never_resumes_is_disconnected_after_the_request_timeout(shared_server):
    server = shared_server(EASEL_REQUEST_TIMEOUT_S="3")
    tasks = idle_tasks(server)
    body = {**LARGE, "timeout": 600}
    with contextlib.closing(sent(server, body, receive_bytes=4096)) as connection:
        read_until(connection, b'"content": "')
        wait_until(lambda: server.event_loop_tasks() <= tasks)
        with pytest.raises(ConnectionResetError):
            read_to_end(connection)


def idle_tasks(server):
    """Returns the number of tasks on the event loop of a server without requests.

    The first stream adds a task of a library that stays, so this sends a stream first.
    """
    body = {**LONG, "max_tokens": 1, "stream": True}
    server.http.post("/v1/chat/completions", json=body).raise_for_status()
    return server.event_loop_tasks()


def test_a_slow_reader_gets_all_of_its_answer(server):
    body = {**LONG, "max_tokens": 100, "stream": True}
    expected = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).text
    connection = sent(server, body, receive_bytes=4096)
    received = b""
    while b"[DONE]" not in received:
        received += connection.recv(64)
    connection.close()
    assert texts(received.decode()) == texts(expected)


def texts(stream):
    lines = [line[6:] for line in stream.splitlines() if line.startswith("data: {")]
    return [json.loads(line)["choices"][0]["delta"].get("content") for line in lines]
