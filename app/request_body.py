"""Middleware that decodes compressed request bodies and limits the size of all of them.

It knows nothing of what is in a body.
"""

import asyncio
import sys
import zlib
from collections.abc import Callable
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BadRequest, BodyTooLarge, UnsupportedEncoding, short

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdDecompressor, ZstdError
else:
    from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

# Where the connection notes the ApiError of a body that does not arrive, in a scope's state.
BROKEN = "broken_body"

# 8 MiB, the largest window that RFC 9659 allows.
_ZSTD_OPTIONS: dict[int, int] = {DecompressionParameter.window_log_max: 23}


class _Decompressor(Protocol):
    """One gzip member, zlib stream or zstd frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class RequestBody:
    """Gives the app a request's body without its Content-Encoding.

    Raises BodyTooLarge if the body has more than `most` bytes, as it was sent or decoded: by its
    Content-Length, or as soon as too much has arrived or come out. Raises UnsupportedEncoding, and
    BadRequest if the body is not what its encoding says.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in (_NOT_ENCODED | _DECOMPRESSORS.keys()):
            raise UnsupportedEncoding(
                f"Content-Encoding {short(encoding)!r} is not supported; allowed: "
                f"{', '.join(_DECOMPRESSORS)}, or none.",
                _DECOMPRESSORS,
            )
        announced = headers.get("content-length", "")
        received = int(announced) if announced.isdigit() else 0
        _check(received, self._most)
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            if BROKEN in scope.get("state", {}):
                raise scope["state"][BROKEN]
            received += len(message.get("body", b""))
            _check(received, self._most)
            return message

        given = encoding in _NOT_ENCODED

        async def decoded_at_once() -> Message:
            nonlocal given
            if given:
                return await limited()
            body, more = bytearray(), True
            while more:
                message = await limited()
                if message["type"] != "http.request":
                    return message
                body += message.get("body", b"")
                more = message.get("more_body", False)
            given = True
            # In a thread, because a large body takes a while and other requests are served then.
            whole = await asyncio.to_thread(decoded, bytes(body), encoding, self._most)
            return {"type": "http.request", "body": whole, "more_body": False}

        await self._app(scope, decoded_at_once, send)


def decoded(body: bytes, encoding: str, most: int) -> bytes:
    """Returns a body without its encoding, which is `gzip`, `deflate` or `zstd`.

    Raises BodyTooLarge before more than `most` bytes have been decoded, and BadRequest if the body
    is damaged.
    """
    whole = bytearray()
    while body:  # of several gzip members or zstd frames in a row
        decompressor = _DECOMPRESSORS[encoding](body)
        try:
            whole += decompressor.decompress(body, most + 1 - len(whole))
        except (zlib.error, ZstdError) as error:
            raise BadRequest(f"The body is not valid {encoding} data: {error}.") from error
        _check(len(whole), most)
        if not decompressor.eof:
            raise BadRequest(f"The body ends in the middle of its {encoding} data.")
        body = decompressor.unused_data
    return bytes(whole)


def _gzip(_body: bytes) -> _Decompressor:
    return zlib.decompressobj(16 + zlib.MAX_WBITS)


def _deflate(body: bytes) -> _Decompressor:
    """HTTP means zlib's format by this name, but some clients send it without zlib's header.

    No such stream begins as zlib's does, which has an 8 in the lower half of its first byte.
    """
    return zlib.decompressobj(zlib.MAX_WBITS if body[0] & 0x0F == 8 else -zlib.MAX_WBITS)


def _zstd(_body: bytes) -> _Decompressor:
    return ZstdDecompressor(options=_ZSTD_OPTIONS)


_DECOMPRESSORS: dict[str, Callable[[bytes], _Decompressor]] = {
    "gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}
_NOT_ENCODED = {"", "identity"}


def _check(size: int, most: int) -> None:
    if size > most:
        raise BodyTooLarge(f"The body is larger than the allowed {most} bytes (max_body_bytes).")
