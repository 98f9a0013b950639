"""Fetches images, but only from hosts that the configuration names.

Otherwise any client could make this machine send requests to other machines in its
network.
"""

import asyncio
from collections.abc import Sequence

import httpx

from app.errors import BadRequest, short

MOST_BYTES_TOGETHER = 64 * 2**20  # of the files of one request

_TIMEOUT_S = 10.0  # for a whole file
_STANDARD_PORTS = {"http": 80, "https": 443}


class ImageHosts:
    """Fetches files from these hosts. It follows no redirects.

    A host that is named without a port allows the standard port of the URL's scheme only. A URL
    with a user name is refused: the server sends no passwords of others.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)

    async def fetch_all(self, urls: Sequence[tuple[str, str]], *, most_bytes: int) -> list[bytes]:
        """Returns the files of several URLs, each of which comes behind the field that has it.

        They are fetched at the same time. Raises BadRequest, which names the field, as soon as one
        can't be fetched, or if they have more than `MOST_BYTES_TOGETHER`.
        """
        if not urls:
            return []
        allowed = [(field, self._allowed(url, field)) for field, url in urls]
        room = _Room()
        async with httpx.AsyncClient(timeout=_TIMEOUT_S) as client:
            fetching = [
                asyncio.create_task(_fetched(client, url, room, most_bytes=most_bytes, param=field))
                for field, url in allowed
            ]
            try:
                return await asyncio.gather(*fetching)
            finally:
                for task in fetching:
                    task.cancel()
                await asyncio.gather(*fetching, return_exceptions=True)

    def _allowed(self, url: str, param: str) -> httpx.URL:
        """Returns the URL. Raises BadRequest if it is none, or its host is not named."""
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise BadRequest(f"{param}: this is not a URL: {error}.", param=param) from error
        if parsed.userinfo:
            raise BadRequest(
                f"{param}: the URL has a user name or a password, which are not sent on; allowed: "
                "a URL without them.",
                param=param,
            )
        if self._hosts.isdisjoint(_names(parsed)):
            raise BadRequest(
                f"{param}: images are fetched only from hosts that the server's setting "
                f"image_hosts names, and {short(parsed.netloc.decode())!r} is not one of them; "
                "send the image as a data URL.",
                param=param,
            )
        return parsed


class _Room:
    """How many bytes the files of one request may still have."""

    def __init__(self) -> None:
        self._left = MOST_BYTES_TOGETHER

    def take(self, size: int, param: str) -> None:
        self._left -= size
        if self._left < 0:
            raise BadRequest(
                f"{param}: the images that are fetched have more than {MOST_BYTES_TOGETHER} bytes "
                "together.",
                param=param,
            )


async def _fetched(
    client: httpx.AsyncClient, url: httpx.URL, room: _Room, *, most_bytes: int, param: str
) -> bytes:
    """Returns the file's bytes. Raises BadRequest, which names `param`."""
    try:
        async with asyncio.timeout(_TIMEOUT_S), client.stream("GET", url) as response:
            if response.status_code != httpx.codes.OK:
                raise BadRequest(
                    f"{param}: the image can't be fetched: the host answered with status "
                    f"{response.status_code}.",
                    param=param,
                )
            file = bytearray()
            async for part in response.aiter_bytes():
                file += part
                room.take(len(part), param)
                if len(file) > most_bytes:
                    raise BadRequest(
                        f"{param}: the file is larger than {most_bytes} bytes.", param=param
                    )
            return bytes(file)
    except (httpx.HTTPError, TimeoutError) as error:
        raise BadRequest(
            f"{param}: the image can't be fetched: {type(error).__name__}.", param=param
        ) from error


def _names(url: httpx.URL) -> set[str]:
    """Returns the names under which the setting may list the URL's host and port."""
    host = url.netloc.decode().lower()  # httpx leaves out a standard port
    if url.port is not None:
        return {host}
    return {host, url.host.lower(), f"{host}:{_STANDARD_PORTS.get(url.scheme)}"}
