"""Who may ask: API keys, each good for everything but the open paths, which need none.

A key may come with a priority, for clients that can't send one: an agent is given such a key, its
person another, and what the agent asks waits for what the person asks.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from ipaddress import ip_address

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Unauthorized
from app.settings import PREFIX, Settings, listed

# Supervisors have no key, and learn nothing but whether the server is up.
_OPEN = frozenset({"/health/live", "/health/ready"})


_PRIORITY = "priority="  # what may stand behind a key


class KeysUnreadableError(RuntimeError):
    """The file of keys is not there or has none, or a key is followed by what is no priority."""


class ApiKeys:
    """Middleware: refuses requests without one of these keys, and remembers the key's priority.

    OpenAI's clients send a key as `Authorization: Bearer`, Anthropic's older ones as `x-api-key`.
    """

    def __init__(self, app: ASGIApp, keys: Mapping[str, int], open_paths: frozenset[str]) -> None:
        self._app = app
        self._priorities = {_hash(key.encode()): priority for key, priority in keys.items()}
        self._open = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open:
            headers = dict(scope["headers"])
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            given = key.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key")
            if given is None:
                raise Unauthorized("An API key is needed, as 'Authorization: Bearer KEY'.")
            # Each one, whichever fits: the time tells nothing about the keys, nor does a length.
            fits = [each for each in self._priorities if hmac.compare_digest(_hash(given), each)]
            if not fits:
                raise Unauthorized("This API key is not one of the server's.")
            scope.setdefault("state", {})["priority"] = self._priorities[fits[0]]
        await self._app(scope, receive, send)


def key_priority(connection: HTTPConnection) -> int:
    """That of the key with which this was asked."""
    priority: int = getattr(connection.state, "priority", 0)
    return priority


def api_keys(settings: Settings) -> dict[str, int]:
    """The keys of the setting and of the file with their priorities. Raises KeysUnreadableError."""
    keys = dict(_key(each, "API_KEY") for each in listed(settings.api_key.get_secret_value()))
    if settings.api_key_file is not None:
        try:
            lines = settings.api_key_file.expanduser().read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise KeysUnreadableError(f"{PREFIX}API_KEY_FILE: {error}") from error
        named = [line for line in lines if line.strip() and not line.startswith("#")]
        if not named:
            raise KeysUnreadableError(f"{PREFIX}API_KEY_FILE: {settings.api_key_file} has no key")
        keys |= dict(_key(line, "API_KEY_FILE") for line in named)
    return keys


def _key(line: str, setting: str) -> tuple[str, int]:
    """A key and its priority, 0 unless one stands behind it."""
    key, *more = line.split()
    if not more:
        return key, 0
    number = more[0].removeprefix(_PRIORITY)
    if len(more) > 1 or number == more[0] or not re.fullmatch("-?[0-9]{1,9}", number):
        raise KeysUnreadableError(
            f"{PREFIX}{setting}: behind a key only its priority is allowed, as in "
            f"'KEY {_PRIORITY}10'"
        )
    return key, int(number)


def open_paths(settings: Settings) -> frozenset[str]:
    """What can be read without a key."""
    return _OPEN | {"/metrics"} if settings.metrics_open else _OPEN


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on this address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
