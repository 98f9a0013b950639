"""Fetches images, but only from hosts that the configuration names.

Otherwise any client could make this machine send requests to other machines in its
network.
"""

from collections.abc import Sequence
from time import monotonic

import httpx

from app.errors import BadRequest, short

_TIMEOUT_S = 10.0


class ImageHosts:
    """Fetches files from these hosts, named with or without a port. It follows no redirects."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)

    def fetch(self, url: str, *, most_bytes: int, param: str) -> bytes:
        """Returns the file's bytes. Raises BadRequest, which names `param`."""
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise BadRequest(f"{param}: this is not a URL: {error}.", param=param) from error
        names = {parsed.host.lower(), parsed.netloc.decode().lower()}
        if self._hosts.isdisjoint(names):
            raise BadRequest(
                f"{param}: images are fetched only from hosts that the server's setting "
                f"image_hosts names, and {short(parsed.host)!r} is not one of them; send the image "
                "as a data URL.",
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
