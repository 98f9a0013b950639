"""The web page at `/` and its files at `/web/`, all of which are in the folder `app/web`.

The page is an ordinary client of the endpoints. It loads nothing from elsewhere, which its
Content-Security-Policy enforces.

An HTML document that the model wrote is shown in a frame, which has no origin and a policy of its
own: no request, and no script but the frame's own, which receives the document. If a person lets
the document run its scripts, it is shown in a frame whose policy allows them. They still have no
origin and can make no request, but no policy keeps them from WebRTC.
"""

import re
from base64 import b64encode
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
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types dompurify"
)
# The page's `frame-src` keeps a frame from being led elsewhere.
_FRAME_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src {scripts}; "
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
            f"/web/{file.relative_to(FOLDER).as_posix()}": _file_response(file, _PAGE_POLICY)
            for file in FOLDER.rglob("*.*")
        }
        frame = FOLDER / "frame.html"
        for path, scripts in (
            ("/web/frame.html", _script_hash(frame)),
            ("/web/frame-with-scripts.html", "'unsafe-inline'"),
        ):
            self._files[path] = _file_response(frame, _FRAME_POLICY.format(scripts=scripts))

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


def _script_hash(file: Path) -> str:
    """Returns the policy's name of the only script in an HTML file."""
    (script,) = re.findall(b"<script>(.*?)</script>", file.read_bytes(), re.DOTALL)
    return f"'sha256-{b64encode(sha256(script).digest()).decode()}'"


def _file_response(file: Path, policy: str) -> Response:
    content = file.read_bytes()
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
