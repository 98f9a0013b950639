"""A small HTTP server that behaves like the Hugging Face hub, for models in local folders."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


class Hub:
    """The repositories of a server, and the requests that it has had.

    `add` publishes a folder as a revision of a repository. Each revision has a commit of its own.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []  # methods and paths
        self.broken = ""  # the kind of request that fails: tree or resolve
        self._folders: dict[tuple[str, str], Path] = {}  # by repository and revision or commit
        self._commits: dict[tuple[str, str], str] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            # It speaks HTTP/1.0, so no connection outlives the server.

            def do_GET(self) -> None:  # the name that http.server calls
                hub._answer(self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, repository: str, folder: Path, revision: str = "main") -> str:
        """Publish a folder under a branch or tag. Returns its commit."""
        commit = hashlib.sha1(f"{repository} {revision} {folder}".encode()).hexdigest()
        self._commits[repository, revision] = commit
        self._folders[repository, revision] = self._folders[repository, commit] = folder
        return commit

    def remove(self, repository: str) -> None:
        """Delete a repository."""
        for key in [key for key in self._folders if key[0] == repository]:
            del self._folders[key]

    def downloaded(self) -> set[str]:
        """Returns the names of all files that were sent."""
        paths = [path for method, path in self.requests if method == "GET" and "/resolve/" in path]
        return {path.split("/resolve/")[1].split("/", 1)[1] for path in paths}

    @contextmanager
    def running(self) -> Iterator["Hub"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def _answer(self, http: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(http.path).path)
        self.requests.append((http.command, path))
        api = path.startswith("/api/models/")
        owner, name, *others = path.removeprefix("/api/models/" if api else "/").split("/")
        repository = f"{owner}/{name}"
        if not any(known == repository for known, _ in self._folders):
            _send(http, 401, error="RepoNotFound")
            return
        kind, revision = (others[0], others[1]) if others else ("revision", "main")
        folder = self._folders.get((repository, revision))
        if folder is None:
            _send(http, 404, error="RevisionNotFound")
            return
        commit = self._commits.get((repository, revision), revision)
        if kind == self.broken:
            _send(http, 404)
        elif kind == "revision":
            _send(http, 200, json.dumps({"id": repository, "sha": commit, "siblings": []}).encode())
        elif kind == "tree":
            _send(http, 200, json.dumps(_tree(folder)).encode())
        else:
            file = folder / "/".join(others[2:])
            if not file.is_file():
                _send(http, 404, error="EntryNotFound", commit=commit)
            else:
                data = file.read_bytes()
                span = re.fullmatch(r"bytes=0-(\d+)", http.headers.get("Range", ""))
                _send(http, 200, data, commit=commit, sent=span and int(span[1]) + 1)


@contextmanager
def use_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Yields a hub that this process uses, with an empty cache, until the block ends."""
    with Hub().running() as hub, monkeypatch.context() as patch:
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in (
            ("ENDPOINT", hub.url),
            ("HUGGINGFACE_CO_URL_TEMPLATE", template),
            ("HF_HUB_CACHE", str(cache)),
            ("HF_HUB_OFFLINE", False),
        ):
            patch.setattr(f"huggingface_hub.constants.{name}", value)
        yield hub


def environment(hub: Hub, cache: Path) -> dict[str, str]:
    """Returns the variables with which a process uses the hub and an empty cache."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}


def _tree(folder: Path) -> list[Mapping[str, Any]]:
    return [
        {
            "type": "file",
            "path": file.relative_to(folder).as_posix(),
            "size": file.stat().st_size,
            "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    ]


def _send(
    http: BaseHTTPRequestHandler,
    status: int,
    body: bytes = b"{}",
    *,
    error: str = "",
    commit: str = "",
    sent: int | None = None,
) -> None:
    """Send a response, with the first `sent` bytes of the body if a request asks for only these."""
    etag = hashlib.sha1(body).hexdigest()
    body = body[:sent]
    http.send_response(status if sent is None else 206)
    http.send_header("Content-Type", "application/json")
    http.send_header("Content-Length", str(len(body)))
    http.send_header("ETag", f'"{etag}"')
    if error:
        http.send_header("X-Error-Code", error)
    if commit:
        http.send_header("X-Repo-Commit", commit)
    http.end_headers()
    if http.command != "HEAD":
        http.wfile.write(body)
