"""Clients that send slowly or nothing: each has a deadline, and they keep nobody else out."""

import resource
import time
from contextlib import ExitStack, closing, suppress

import pytest

from tests.polling import wait_until
from tests.server.vitals import unharmed
from tests.server.wire import (
    BODY,
    CHUNKED,
    GET,
    HOST,
    POST,
    answers,
    check_refusal,
    connected,
    parsed,
    received,
)

MANY = 300
BEGUN = {
    "half a request line": b"GET /hea",
    "half of the headers": GET + b"x: y",
    "half a body": POST + b"Content-Length: 1500\r\n\r\n{",
    "half a chunk": CHUNKED + b"ff\r\n{",
    "half a chunk's size": CHUNKED + b"f",
    "headers that expect an interim answer": POST
    + b"Expect: 100-continue\r\nContent-Length: 15\r\n\r\n",
    "half a body that is not read": b"POST /nope HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 9\r\n\r\n",
}


@pytest.fixture(scope="module")
def server(shared_server):
    """A server that waits one second for headers and bodies."""
    server = shared_server(EASEL_RECEIVE_TIMEOUT_S="1")
    with unharmed(server, 2**27):
        yield server


def open_connections(server, stack, count=MANY):
    return [stack.enter_context(closing(connected(server))) for _ in range(count)]


@pytest.mark.parametrize("name", BEGUN)
def test_hundreds_of_half_sent_requests_get_a_408_and_are_closed(server, name):
    with ExitStack() as stack:
        connections = open_connections(server, stack)
        for connection in connections:
            connection.sendall(BEGUN[name])
        assert server.http.get("/health/live").status_code == 200
        for connection in connections:
            *_, answer = parsed(received(connection))
            check_refusal(answer, 404 if "not read" in name else 408)


@pytest.mark.parametrize(
    ("path", "field"), [("/v1/messages", ""), ("/v1/models", "anthropic-version: 1\r\n")]
)
def test_a_timeout_is_in_the_dialect_of_the_request(server, path, field):
    with closing(connected(server)) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\n{field}Host: localhost\r\n".encode())
        (answer,) = parsed(received(connection))
    check_refusal(answer, 408, "/v1/messages")
    assert answer.json()["error"]["type"] == "timeout_error"
    assert "x-should-retry" not in answer.headers


@pytest.mark.parametrize("begun", [GET + b"x: ", CHUNKED, POST + b"Content-Length: 900\r\n\r\n"])
def test_a_byte_now_and_then_does_not_extend_the_deadline(server, begun):
    """The server closes the connection although the client never pauses."""
    part = b"1\r\nx\r\n" if begun is CHUNKED else b"x"
    with closing(connected(server)) as connection:
        connection.sendall(begun)
        connection.settimeout(0.05)

        def sends_and_gets():
            try:
                connection.sendall(part)
                return connection.recv(65536)
            except TimeoutError:
                return None

        begun_answer = wait_until(sends_and_gets)
        connection.settimeout(10)
        (answer,) = parsed(begun_answer + received(connection))
        check_refusal(answer, 408)


def test_a_large_body_may_take_longer_than_the_deadline_of_a_small_one(server):
    part = b" " * 2**17  # 128 KiB give eight seconds more
    with closing(connected(server)) as connection:
        length = len(part) + len(BODY)
        connection.sendall(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % length)
        connection.sendall(part)
        time.sleep(2)  # twice the deadline
        connection.sendall(BODY)
        (answer,) = parsed(received(connection))
    assert answer.status == 200


def test_a_client_that_sends_slowly_but_in_time_is_answered(server):
    with closing(connected(server)) as connection:
        for byte in GET + b"Connection: close\r\n\r\n":
            connection.sendall(bytes([byte]))
        (answer,) = parsed(received(connection))
    assert answer.status == 200


def test_a_request_that_is_complete_has_no_deadline_to_be_received(server):
    body = {"prompt": "a", "max_tokens": 5}
    with server.stopped_worker() as _:
        connection = connected(server)
        content = str(body).replace("'", '"').encode()
        head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Connection: close\r\n"
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        time.sleep(2)  # twice the deadline
    with closing(connection):
        (answer,) = parsed(received(connection))
    assert answer.status == 200


def test_a_kept_connection_may_be_idle_for_longer_than_a_request_may_take_to_arrive(server):
    with closing(connected(server)) as connection:
        connection.sendall(GET + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        time.sleep(2)  # twice the deadline
        connection.sendall(GET + b"Connection: close\r\n\r\n")
        (answer,) = parsed(received(connection))
    assert answer.status == 200


def test_large_bodies_that_never_end_are_bounded_together_and_small_ones_go_on(shared_server):
    server = shared_server(EASEL_MAX_BODY_BYTES=str(2**22))
    part, head = b" " * (2**22 - 100), POST + b"Content-Length: %d\r\n\r\n" % 2**22
    with unharmed(server, 2**27), ExitStack() as stack:
        connections = open_connections(server, stack, 20)  # 80 MiB, of which 32 may arrive
        for connection in connections:
            with suppress(OSError):  # it may be refused before it has sent all
                connection.sendall(head + part)
        assert server.http.post("/tokenize", content=BODY).status_code == 200
        refused = 0
        for connection in connections:
            connection.settimeout(0.2)
            with suppress(OSError):
                (answer,) = parsed(received(connection))
                check_refusal(answer, 429)
                assert answer.headers["retry-after"]
                refused += 1
        assert refused >= 10


def test_idle_connections_make_room_for_new_ones(start_server):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))  # the server inherits it
    try:
        server = start_server()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    server.wait_until_ready()
    unread = (b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n") * 100  # 20 MB of answers
    with ExitStack() as stack:
        for begun in (b"", GET, POST + b"Content-Length: 1500\r\n\r\n{", unread):
            for connection in open_connections(server, stack, 150):
                with suppress(OSError):  # it may already have made room
                    connection.sendall(begun)
            assert answers(server, GET + b"Connection: close\r\n\r\n")[0].status == 200
    assert "Traceback" not in server.log.read_text()
    assert "Too many open files" not in server.log.read_text()
