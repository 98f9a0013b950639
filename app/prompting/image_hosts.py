"""Fetches images, but only from hosts that the configuration names.

Otherwise any client could make this machine send requests to other machines in its
network.
"""

from collections.abc import Sequence
from time import monotonic

import httpx

from app.errors import BadRequest, short

_TIMEOUT_S = 10.0
_STANDARD_PORTS = {"http": 80, "https": 443}


class ImageHosts:
    """Fetches files from these hosts. It follows no redirects.

    A host that is named without a port allows the standard port of the URL's scheme only. A URL
    with a user name is refused: the server sends no passwords of others.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)

    def fetch(self, url: str, *, most_bytes: int, param: str) -> bytes:
        """Returns the file's bytes. Raises BadRequest, which names `param`."""
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
        until = monotonic() + _TIMEOUT_S
        try:
            with httpx.stream("GET", parsed, timeout=_TIMEOUT_S) as response:
                if response.status_code != httpx.codes.OK:
                    raise BadRequest(
                        f"{param}: the image can't be fetched: the host answered with status "
                        f"{response.status_code}.",
                        param=param,
                    )
                file = bytearray()
                for part in response.iter_bytes():
                    file += part
                    if monotonic() > until:
                        raise httpx.ReadTimeout("the file takes too long")
                    if len(file) > most_bytes:
                        raise BadRequest(
                            f"{param}: the file is larger than {most_bytes} bytes.", param=param
                        )
                return bytes(file)
        except httpx.HTTPError as error:
            raise BadRequest(
                f"{param}: the image can't be fetched: {type(error).__name__}.", param=param
            ) from error


def _names(url: httpx.URL) -> set[str]:
    """Returns the names under which the setting may list the URL's host and port."""
    host = url.netloc.decode().lower()  # httpx leaves out a standard port
    if url.port is not None:
        return {host}
    return {host, url.host.lower(), f"{host}:{_STANDARD_PORTS.get(url.scheme)}"}
