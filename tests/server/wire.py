"""Raw sockets to a real server, for what no HTTP client would send."""

import json
import re
import socket
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tests.running_server import Server

TIMEOUT_S = 60
HOST = b"Host: localhost\r\n"
BODY = b'{"prompt": "a"}'
GET = b"GET /health/live HTTP/1.1\r\n" + HOST
POST = b"POST /tokenize HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE_POST = POST + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def connected(server: Server) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(server.port)))
    connection.settimeout(TIMEOUT_S)
    return connection


def received(connection: socket.socket) -> bytes:
    """Returns everything until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def answers(server: Server, data: bytes) -> list[Answer]:
    """Returns all answers to these bytes, after which the server has closed the connection."""
    with closing(connected(server)) as connection:
        connection.sendall(data)
        return parsed(received(connection))


def parsed(data: bytes) -> list[Answer]:
    """Returns answers with a Content-Length, one after the other. Interim ones are left out."""
    parts = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        size = int(headers.get("content-length", 0))
        parts.append(Answer(int(status.split()[1]), headers, data[:size]))
        data = data[size:]
    return [each for each in parts if each.status != 100]


def check_refusal(answer: Answer, status: int, path: str = "/") -> None:
    """Check that an answer is an error in the envelope of its path's dialect, with a request id."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == answer.headers["request-id"]
    error = answer.json()
    if path.startswith("/v1/messages"):
        assert error["type"] == "error"
        assert sorted(error["error"]) == ["message", "type"]
        assert error["request_id"] == answer.headers["x-request-id"]
    else:
        assert sorted(error["error"]) == ["code", "message", "param", "type"]
    assert re.search(r"\w", error["error"]["message"])
