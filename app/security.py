"""API keys. Each key opens all paths. A few paths are open without a key.

A key may have a priority, for clients that can't send one in their requests. If an agent uses a key
of its own with a worse priority, its requests wait for those of its user.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Unauthorized
from app.settings import PREFIX, Settings, listed

# Supervisors have no key. These paths tell them nothing but whether the server is up.
_OPEN = frozenset({"/health", "/health/live", "/health/ready"})
_PRIORITY = "priority="  # may follow a key, after a space


@dataclass(frozen=True)
class Client:
    """The owner of an API key, or everyone if there are no keys.

    `id` is random, is made when the server starts, and says nothing about the key.
    """

    id: str = ""
    priority: int | None = None  # the best one that requests may have; None allows all


class KeysUnreadableError(RuntimeError):
    """The file of keys can't be read or has no key, or the text after a key is not a priority."""


_EVERYONE = Client()


class ApiKeys:
    """Middleware that refuses requests without a known key and stores whose key it is.

    OpenAI's clients send a key as `Authorization: Bearer`, Anthropic's also as `x-api-key`, and
    those for Azure as `api-key`. A client may send several, of which one must be known.
    """

    def __init__(self, app: ASGIApp, keys: Mapping[str, int], open_paths: frozenset[str]) -> None:
        self._app = app
        self._clients = {
            _hash(key.encode()): Client(secrets.token_hex(16), priority)
            for key, priority in keys.items()
        }
        self._open = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open:
            given = _given_keys(dict(scope["headers"]))
            if not given:
                raise Unauthorized("An API key is needed; send it as 'Authorization: Bearer KEY'.")
            # All hashes are compared, also after a match, and they have one length. So the time
            # reveals nothing about the keys.
            fits = [
                known
                for key in given
                for known in self._clients
                if hmac.compare_digest(_hash(key), known)
            ]
            if not fits:
                raise Unauthorized("The API key is not known to this server.")
            scope.setdefault("state", {})["client"] = self._clients[fits[0]]
        await self._app(scope, receive, send)


def _given_keys(headers: Mapping[bytes, bytes]) -> list[bytes]:
    """Returns the keys in a request's headers."""
    scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
    keys = [bearer.strip()] if scheme.lower() == b"bearer" else []
    return keys + [headers[name] for name in (b"x-api-key", b"api-key") if name in headers]


def client_of(connection: HTTPConnection) -> Client:
    """Returns the owner of the key that the request was sent with."""
    client: Client = getattr(connection.state, "client", _EVERYONE)
    return client


def api_keys(settings: Settings) -> dict[str, int]:
    """Returns the priority of each key in the settings and in the file of keys.

    Raises KeysUnreadableError.
    """
    keys = dict(_key(each, "API_KEY") for each in listed(settings.api_key.get_secret_value()))
    if settings.api_key_file is not None:
        try:
            lines = settings.api_key_file.expanduser().read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise KeysUnreadableError(f"{PREFIX}API_KEY_FILE: {error}") from error
        named = [line for line in lines if line.strip() and not line.strip().startswith("#")]
        if not named:
            raise KeysUnreadableError(f"{PREFIX}API_KEY_FILE: {settings.api_key_file} has no key")
        keys |= dict(_key(line, "API_KEY_FILE") for line in named)
    return keys


def _key(line: str, setting: str) -> tuple[str, int]:
    """Returns a key and its priority, which is 0 if none follows the key."""
    key, *more = line.split()
    if not more:
        return key, 0
    number = more[0].removeprefix(_PRIORITY)
    if len(more) > 1 or number == more[0] or not re.fullmatch("-?[0-9]{1,9}", number):
        raise KeysUnreadableError(
            f"{PREFIX}{setting}: only a priority may follow a key, as in 'KEY {_PRIORITY}10'"
        )
    return key, int(number)


def open_paths(settings: Settings) -> frozenset[str]:
    """Returns the paths that need no key."""
    return _OPEN | {"/metrics"} if settings.metrics_open else _OPEN


def is_loopback(host: str) -> bool:
    """Returns whether a server that listens on this address is reachable from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
