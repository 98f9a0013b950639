"""An HTTP request on its way from the gateway to a replica, and what comes back."""

from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Scope

_FIELDS = ("http_version", "method", "scheme", "path", "raw_path", "query_string", "headers")


@dataclass(frozen=True)
class Call:
    """A request with its whole body, as the gateway sends it to a replica.

    `replica` is the id of the replica that must answer it, or None if any may.
    """

    head: dict[str, Any]
    body: bytes
    replica: str | None = None

    @classmethod
    def of(cls, scope: Scope, body: bytes) -> "Call":
        """Returns the call of an ASGI scope, of which only fields that can travel are kept."""
        head = {name: scope[name] for name in _FIELDS if name in scope}
        for end in ("client", "server"):
            head[end] = None if scope.get(end) is None else tuple(scope[end])
        return cls(head, body)

    def scope(self) -> Scope:
        """Returns a new ASGI scope of the request."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "root_path": "",
            "state": {},
            **self.head,
        }


@dataclass(frozen=True)
class Whole:
    """A replica's whole response, and the replica's id."""

    replica: str
    messages: list[Message]

    @property
    def status(self) -> int:
        status: int = self.messages[0]["status"]
        return status

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)
