"""The web page at `/` and its files at `/web/`, all of which are in the folder `app/web`.

The page is an ordinary client of the endpoints and uses no other. It loads nothing from elsewhere,
which its Content-Security-Policy enforces. A model's HTML document runs in `/web/frame.html`, which
has a policy of its own: the document may run scripts, but it has no origin and no network.
"""

from hashlib import sha256
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

FOLDER = Path(__file__).parent / "web"
_MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
_FRAME = "/web/frame.html"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
# The page's `frame-src` forbids the frame to lead anywhere else.
_FRAME_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; media-src data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)


class WebPage:
    """Serves the page to browsers, and its files. All other requests are passed on.

    `/` is the page only for requests that accept HTML. The files need no API key, because they say
    nothing about the server but that it is Easel. They are read once, at the start.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._files = {
            f"/web/{file.relative_to(FOLDER).as_posix()}": _file_response(file)
            for file in FOLDER.rglob("*.*")
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = self._response(scope) if scope["type"] == "http" else None
        await (response or self._app)(scope, receive, send)

    def _response(self, scope: Scope) -> Response | None:
        if scope["method"] != "GET":
            return None
        headers = Headers(scope=scope)
        path = scope["path"]
        if path == "/" and "text/html" in headers.get("accept", ""):
            path = "/web/index.html"
        file = self._files.get(path)
        if file is not None and headers.get("if-none-match") == file.headers["etag"]:
            return Response(status_code=304, headers={"etag": file.headers["etag"]})
        return file


def _file_response(file: Path) -> Response:
    content = file.read_bytes()
    policy = _FRAME_POLICY if file == FOLDER / Path(_FRAME).name else _PAGE_POLICY
    headers = {
        "cache-control": "no-cache",  # a browser asks each time whether a file has changed
        "content-security-policy": policy,
        "cross-origin-opener-policy": "same-origin",
        "etag": f'"{sha256(content).hexdigest()[:32]}"',
        "referrer-policy": "no-referrer",
        "vary": "accept",
        "x-content-type-options": "nosniff",
        "x-dns-prefetch-control": "off",
    }
    return Response(content, headers=headers, media_type=_MEDIA_TYPES[file.suffix])
