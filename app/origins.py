"""Host names and web pages that may use the server.

A browser lets any page send requests to a server of this machine, also without asking the server
first, and also to a server without API keys. The page can't read the answers, unless its own host
name has been made to lead to this machine (DNS rebinding). So hosts are checked as well as origins.
Programs other than browsers send no origin.
"""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Forbidden
from app.security import is_loopback
from app.settings import PREFIX, Settings, listed

_LOCAL = ("localhost", "127.0.0.1", "[::1]")


class AllowedHosts:
    """Refuses requests whose Host header has another name. Ports do not matter.

    A name may begin with `*.`, for all names that end in what follows. A request without the
    header, which HTTP/1.0 allows, is not a browser's.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed = scope["type"] != "http" or "host" not in Headers(scope=scope)

        async def allow(_scope: Scope, _receive: Receive, _send: Send) -> None:
            nonlocal allowed
            allowed = True

        # Starlette decides. Its own refusal is not sent, because it does not name the setting.
        check = TrustedHostMiddleware(allow, self._hosts, www_redirect=False)
        await check(scope, receive, _send_nothing)
        if not allowed:
            raise Forbidden(
                "The Host header of this request does not name this server. If the server shall be "
                f"reached under that name, add it to the setting {PREFIX}ALLOWED_HOSTS.",
                code="host_not_allowed",
            )
        await self._app(scope, receive, send)


async def _send_nothing(_message: object) -> None:
    pass


class AllowedOrigins:
    """Refuses requests that a browser sends for a page of another origin.

    Browsers name a page's origin in `Origin`, and in `Sec-Fetch-Site` its relation to the server,
    which also knows the server's name in front of a proxy. Old browsers lack the latter. A page can
    change neither. Pages of the server's own origin are allowed.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "*" not in self._origins:
            headers = Headers(scope=scope)
            if headers.get("origin") not in self._origins and _is_foreign(scope["method"], headers):
                raise Forbidden(
                    "A web page of another origin sent this request. If its pages may use this "
                    f"server, add the origin to the setting {PREFIX}CORS_ORIGINS.",
                    code="origin_not_allowed",
                )
        await self._app(scope, receive, send)


def _is_foreign(method: str, headers: Headers) -> bool:
    """Returns whether a page of another origin sent the request."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if site is None:
        return origin is not None and origin.partition("://")[2] != headers.get("host", "").lower()
    if site in ("same-origin", "none"):  # "none" means that a person entered the address
        return False
    # A person follows a link. The page that has the link can't read where it leads.
    is_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
    return not (is_link and origin is None)


def allowed_hosts(settings: Settings) -> list[str]:
    """Returns the names under which the server may be reached, or `*` for any.

    If other machines reach the server, they may know it by any name, so names are checked only if
    the setting lists some.
    """
    named = listed(settings.allowed_hosts)
    if not named and not is_loopback(settings.host):
        return ["*"]
    address = f"[{settings.host}]" if ":" in settings.host else settings.host
    return [*_LOCAL, address, *named]
