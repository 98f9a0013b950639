"""Who may ask: API keys. Knows no user: a key is good for everything but the open paths."""

import hashlib
import hmac
from collections.abc import Iterable
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Unauthorized
from app.settings import PREFIX, Settings, listed

# Supervisors have no key, and learn nothing but whether the server is up.
_OPEN = frozenset({"/health/live", "/health/ready"})


class KeysUnreadableError(RuntimeError):
    """The file of keys is not there, or has none."""


class ApiKeys:
    """Middleware: refuses requests without one of these keys.

    OpenAI's clients send a key as `Authorization: Bearer`, Anthropic's older ones as `x-api-key`.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str], open_paths: frozenset[str]) -> None:
        self._app = app
        self._hashes = [_hash(key.encode()) for key in keys]
        self._open = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open:
            headers = dict(scope["headers"])
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            given = key.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key")
            if given is None:
                raise Unauthorized("An API key is needed, as 'Authorization: Bearer KEY'.")
            # Each one, whichever fits: the time tells nothing about the keys, nor does a length.
            if sum([hmac.compare_digest(_hash(given), each) for each in self._hashes]) == 0:
                raise Unauthorized("This API key is not one of the server's.")
        await self._app(scope, receive, send)


def api_keys(settings: Settings) -> list[str]:
    """The keys of the setting and of the file. Raises KeysUnreadableError."""
    keys = listed(settings.api_key.get_secret_value())
    if settings.api_key_file is not None:
        try:
            lines = settings.api_key_file.expanduser().read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise KeysUnreadableError(f"{PREFIX}API_KEY_FILE: {error}") from error
        named = [line for line in lines if line.strip() and not line.startswith("#")]
        if not named:
            raise KeysUnreadableError(f"{PREFIX}API_KEY_FILE: {settings.api_key_file} has no key")
        keys += [line.strip() for line in named]
    return keys


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
