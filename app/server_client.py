"""The HTTP client with which commands such as `easel chat` talk to a running server."""

import httpx

from app.security import is_loopback

_CONNECT_S = 5.0


def server_client(url: str, api_key: str = "") -> httpx.Client:
    """Returns a client of the server at `url`, which may end with /v1. An answer may take any time.

    A proxy that the environment names is not used for this machine. Raises ValueError or
    httpx.InvalidURL if `url` is none.
    """
    base = httpx.URL(url.rstrip("/").removesuffix("/v1"))
    return httpx.Client(
        base_url=base,
        headers={"authorization": f"Bearer {api_key}"} if api_key else {},
        timeout=httpx.Timeout(None, connect=_CONNECT_S),
        trust_env=not is_loopback(base.host),
    )
