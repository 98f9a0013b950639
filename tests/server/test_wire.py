"""What is not HTTP, or almost: each is answered in an envelope, or as HTTP means it."""

import os
from contextlib import closing

import pytest

from tests.polling import wait_until
from tests.server.vitals import unharmed
from tests.server.wire import (
    BODY,
    CHUNKED,
    GET,
    HOST,
    POST,
    WHOLE_POST,
    answers,
    check_refusal,
    connected,
    parsed,
    received,
)

MESSAGES = b"POST /v1/messages HTTP/1.1\r\n" + HOST
CLOSE = GET + b"Connection: close\r\n\r\n"


@pytest.fixture(scope="module", autouse=True)
def _no_harm(server):
    with unharmed(server, 2**28):
        yield


NOT_HTTP = {
    "words": b"hello world\r\n\r\n",
    "NUL bytes": b"\x00\x00\r\n\r\n",
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(200),
    "HTTP/0.9": b"GET /health/live\r\n\r\n",
    "an empty line first": b"\r\n" + GET + b"\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": GET + HOST + b"\r\n",
    "a NUL in a header": GET + b"x: a\x00b\r\n\r\n",
    "a NUL in the target": b"GET /\x00 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a space before a colon": GET + b"x : a\r\n\r\n",
    "a header without a name": GET + b": a\r\n\r\n",
    "a control character in a name": GET + b"x\x01: a\r\n\r\n",
    "two lengths": POST + b"Content-Length: 15\r\nContent-Length: 16\r\n\r\n" + BODY,
    "a length with a sign": POST + b"Content-Length: +15\r\n\r\n" + BODY,
    "a negative length": POST + b"Content-Length: -1\r\n\r\n" + BODY,
    "a length of 30 digits": POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + BODY,
}


@pytest.mark.parametrize("name", NOT_HTTP)
def test_what_is_not_http_is_refused_in_the_envelope_and_the_connection_closed(server, name):
    (answer,) = answers(server, NOT_HTTP[name] + CLOSE)
    check_refusal(answer, 400)
    assert answer.headers["connection"] == "close"
    assert answer.json()["error"]["code"] == "malformed_http"
    wait_until(lambda: answer.headers["x-request-id"] in server.log.read_text())


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 505),
        (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
        (GET + b"x: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (GET + b"x: " + b"a" * 900_000 + b"\r\n\r\n", 431),  # more than one read takes
        (GET + b"".join(b"x%d: a\r\n" % number for number in range(5000)) + b"\r\n", 431),
        (GET + b"x: a\r\n" * 100 + b"\r\n", 431),
        (b"GET /" + b"a" * 900_000, 431),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_what_http_has_a_status_for_gets_it_and_the_client_can_read_it(server, data, status):
    (answer,) = answers(server, data)
    check_refusal(answer, status)


def test_a_refused_head_request_gets_the_headers_alone(server):
    with closing(connected(server)) as connection:
        connection.sendall(b"HEAD / HTTP/2.0\r\n" + HOST + b"\r\n")
        head, _, body = received(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 505")
    assert body == b""


AMBIGUOUS = [
    b"Content-Length: 15\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 15\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
]


@pytest.mark.parametrize("fields", AMBIGUOUS)
def test_a_length_together_with_chunks_is_refused_and_nothing_behind_it_is_read(server, fields):
    chunks = b"f\r\n" + BODY + b"\r\n0\r\n\r\n"
    (answer,) = answers(server, POST + fields + b"\r\n" + chunks + CLOSE)
    check_refusal(answer, 400)
    (answer,) = answers(server, MESSAGES + fields + b"\r\n" + chunks + CLOSE)
    check_refusal(answer, 400, "/v1/messages")


def test_chunks_in_http_1_0_are_refused(server):
    data = CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"f\r\n" + BODY + b"\r\n0\r\n\r\n"
    (answer,) = answers(server, data)
    check_refusal(answer, 400)


BAD_CHUNKS = {
    "letters": b"zz\r\n",
    "a negative size": b"-1\r\n",
    "a prefix": b"0xf\r\n",
    "30 digits": b"f" * 30 + b"\r\n",
    "a wrong end": b"f\r\n" + BODY + b"XX0\r\n\r\n",
    "no name in a trailer": b"f\r\n" + BODY + b"\r\n0\r\nx y\r\n\r\n",
    "a size without an end": b"f;" + b"a" * 900_000,
    "too many": b"1\r\nx\r\n" * 70_000,
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_a_body_with_bad_chunks_is_refused_in_its_dialect_and_the_connection_closed(server, name):
    for head, path in ((POST, "/tokenize"), (MESSAGES, "/v1/messages")):
        with closing(connected(server)) as connection:
            connection.sendall(head + b"X-Request-Id: mine\r\nTransfer-Encoding: chunked\r\n\r\n")
            try:
                connection.sendall(BAD_CHUNKS[name])
            except OSError:
                assert len(BAD_CHUNKS[name]) > 65536  # the refusal came before all was sent
                continue
            (answer,) = parsed(received(connection))
        check_refusal(answer, 431 if "without" in name else 400, path)
        assert answer.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    "data",
    [
        CHUNKED + b"f;a=b\r\n" + BODY + b"\r\n0\r\nx: y\r\nContent-Length: 3\r\n\r\n",
        CHUNKED + b"F \r\n" + BODY + b"\r\n000\r\n\r\n",
        WHOLE_POST.replace(b"Content-Length: 15", b"Content-Length: 15, 15"),
        WHOLE_POST.replace(b"Host: localhost", b"Host: localhost\r\nContent-Length: 15"),
        WHOLE_POST.replace(b"Host: localhost", b"Host: localhost\r\nExpect: 100-continue"),
        WHOLE_POST.replace(b"Host: localhost", b"Host: localhost\r\nExpect: something"),
        WHOLE_POST.replace(b"/tokenize", b"http://elsewhere.example//tokenize/"),
        WHOLE_POST.replace(b"Host: localhost", b"Host: localhost\r\nx: a\r\n b"),
    ],
)
def test_what_is_unusual_but_clear_is_answered_and_the_next_request_too(server, data):
    first, second = answers(server, data + CLOSE)
    assert (first.status, first.json()["count"]) == (200, len(first.json()["tokens"]))
    assert second.json() == {"status": "live"}


def test_pipelined_requests_are_answered_in_their_order_up_to_the_first_bad_one(server):
    sent = (GET + b"\r\n" + WHOLE_POST) * 50 + b"nonsense\r\n\r\n" + GET + b"\r\n"
    *good, bad = answers(server, sent)
    assert [each.status for each in good] == [200] * 100
    assert ["count" in each.json() for each in good] == [False, True] * 50
    check_refusal(bad, 400)


def test_http_1_0_is_answered_and_closed(server):
    for field in (b"", b"Connection: keep-alive\r\n"):
        (answer,) = answers(server, b"GET /health/live HTTP/1.0\r\n" + field + b"\r\n")
        assert answer.json() == {"status": "live"}


@pytest.mark.parametrize(
    "target", [b"evil.example:443", b"*", b"/../../etc/passwd", b"ftp://x/", b"/%00%0d%0aX:%20y"]
)
@pytest.mark.parametrize("method", [b"CONNECT", b"OPTIONS", b"GET", b"POST"])
def test_targets_that_are_no_path_of_this_server_are_refused(server, method, target):
    head = method + b" " + target + b" HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    (answer,) = answers(server, head)
    check_refusal(answer, 404)
    assert "x" not in answer.headers


def test_what_a_client_names_is_not_repeated_whole(server):
    many = b"m" * 40_000
    named = {
        "a path": b"GET /" + many + b" HTTP/1.1\r\n" + HOST,
        "a model's path": b"GET /v1/models/" + many + b" HTTP/1.1\r\n" + HOST,
        "a response's path": b"GET /v1/responses/" + many + b" HTTP/1.1\r\n" + HOST,
        "a method": many + b" /v1/models HTTP/1.1\r\n" + HOST,
        "an encoding": POST + b"Content-Encoding: " + many + b"\r\n",
        "a request id": GET + b"x-request-id: " + many + b"\r\n",
        "a key": GET + b"Authorization: Bearer " + many + b"\r\n",
    }
    for head in named.values():
        (answer,) = answers(server, head + b"Connection: close\r\n\r\n")
        assert len(answer.body) + len(str(answer.headers)) < 2000
    message = '{"role":"user","content":"x"}'
    bodies = {
        "/tokenize": ['{"model":"%s","prompt":""}', '{"prompt":"","%s":1}', '{"%s":1}'],
        "/v1/chat/completions": [
            f'{{"model":"%s","messages":[{message}]}}',
            f'{{"messages":[{message}],"max_tokens":1,"tools":[{{"type":"%s"}}]}}',
            f'{{"messages":[{message}],"logit_bias":{{"%s":1}}}}',
            '{"messages":[{"role":"%s","content":"x"}]}',
            '{"messages":[{"role":"tool","tool_call_id":"%s","content":"x"}]}',
            f'{{"messages":[{message}],"response_format":{{"type":"%s"}}}}',
            f'{{"messages":[{message}],"max_tokens":1,"stop":{{"%s":1}}}}',
        ],
        "/v1/responses": [
            '{"previous_response_id":"%s","input":"x"}',
            '{"input":[{"type":"item_reference","id":"%s"}]}',
            '{"input":"x","%s":{"%s":"%s"}}',
        ],
        "/v1/messages": [
            f'{{"model":"%s","max_tokens":1,"messages":[{message}]}}',
            '{"max_tokens":1,"messages":[{"role":"user","content":[{"type":"tool_result",'
            '"tool_use_id":"%s"}]}]}',
            f'{{"max_tokens":1,"messages":[{message}],"%s":1}}',
        ],
    }
    for path, each in bodies.items():
        for body in each:
            content = body.replace("%s", "m" * 40_000)
            response = server.http.post(path, content=content)
            assert len(response.content) + len(str(response.headers)) < 4000, (path, body)
            assert "m" * 1001 not in response.text
    assert "m" * 1001 not in server.log.read_text()


def test_ignored_names_with_line_ends_are_one_line_of_a_log_at_level_debug(shared_server):
    server = shared_server(EASEL_LOG_LEVEL="debug")
    forged = "x\n2026-11-25 13:04:51,201 INFO app.answers [req-1] answer"
    message = {"role": "user", "content": "x", forged: 1, "y" * 40_000: 1}
    body = {"messages": [message], "max_tokens": 1}
    server.http.post("/v1/chat/completions", json=body).raise_for_status()
    wait_until(lambda: "ignored fields of the request" in server.log.read_text())
    log = server.log.read_text()
    assert "\n2026-11-25 13:04:51,201" not in log
    assert "y" * 1000 not in log


def test_a_body_that_nobody_reads_is_dropped_and_the_connection_goes_on(server):
    head = b"POST /v1/nope HTTP/1.1\r\n" + HOST + b"Content-Length: 3000000\r\n\r\n"
    first, second = answers(server, head + os.urandom(3_000_000) + CLOSE)
    check_refusal(first, 404)
    assert second.status == 200


def test_bytes_behind_a_streamed_request_do_not_break_its_stream(server):
    body = b'{"prompt": "a", "max_tokens": 60, "stream": true}'
    head = b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(body)
    with closing(connected(server)) as connection:
        connection.sendall(head + body)
        connection.sendall(b"\x00nonsense" * 10_000)
        data = received(connection)
    stream, _, refusal = data.partition(b"\r\n0\r\n\r\n")
    assert b"data: [DONE]" in stream
    check_refusal(parsed(refusal)[0], 400)
