"""`easel serve`: listens, loads the model, tells the user how far it is, and serves until the end.

The address is printed before anything is imported or loaded that takes long, so that the first line
comes at once and a taken port is reported at once.
"""

import errno
import io
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from rich.console import Console
from rich.markup import escape

from app.listening_socket import ListeningSocket
from app.logs import configure_logs
from app.settings import PREFIX, Settings, server_url
from app.stderr import unblocked_stderr
from app.terminal import ProgressLine, command_line
from engine.messages import Loading, Ready
from engine.sizing.plan import gb

if TYPE_CHECKING:
    from fastapi import FastAPI

    from app.server import Announce

_BACKLOG = 2048  # connections that may wait until the server has started
_LONGEST_STALL_MS = 2**31 - 1  # the largest value of the socket option TCP_USER_TIMEOUT
_QUIET_S = 10.0  # a start that takes no longer has no line of progress in a file

logger = logging.getLogger(__name__)


class CannotServeError(RuntimeError):
    """The server cannot start: its address is not available, or a file cannot be read."""


def serve(settings: Settings, console: Console) -> int:
    """Serve until a signal ends the process.

    Returns the exit code, which is 1 if the worker cannot start. The reason is then the last line.
    Raises CannotServeError if there is a reason not to start the worker.
    """
    with unblocked_stderr():
        return _serve(settings, console)


def _serve(settings: Settings, console: Console) -> int:
    configure_logs(settings.log_level, settings.log_format)
    if settings.log_format == "json":
        console.file = _LogLines()
    listening = listen(settings)
    url = server_url(settings.host, listening.getsockname()[1])
    console.print(f"easel: listening on {url}; loading the model {settings.model}", markup=False)
    with ProgressLine(console, animated=True, first_s=_QUIET_S) as progress:
        progress.show(f"loading the model {settings.model}")
        failure = _run(settings, listening, console, announcer(settings, url, console, progress))
    if failure is not None:
        console.print(f"easel: {failure}", markup=False)
        return 1
    return 0


def _run(
    settings: Settings, listening: socket.socket, console: Console, announce: "Announce"
) -> str | None:
    """Serve until the end. Returns why the worker cannot start, or None if it could."""
    # These imports take longer than all others together.
    from app.prompting.template import TemplateUnreadableError
    from app.security import KeysUnreadableError, api_keys, is_loopback
    from app.server import create_app
    from engine.sizing.dimensions import DimensionsError
    from engine.sizing.model_files import ModelFilesError

    try:
        app = create_app(settings, announce)
    except (
        DimensionsError,
        KeysUnreadableError,
        ModelFilesError,
        TemplateUnreadableError,
    ) as error:
        raise CannotServeError(str(error)) from error
    if not is_loopback(settings.host) and not api_keys(settings):
        console.print(
            f"[bold red]easel: anyone who can reach {escape(settings.host)} can use this server; "
            f"set {PREFIX}API_KEY to require a key.[/bold red]"
        )
    config = server_config(app, settings)
    # uvicorn shuts down in order and then raises the signal again. It is ignored then, because a
    # server that ends on request exits with code 0.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    _Server(config).run([listening])
    worker_error: str | None = getattr(app.state, "worker_error", None)
    return worker_error


def server_config(app: "FastAPI", settings: Settings) -> uvicorn.Config:
    """Returns uvicorn's configuration, which does not depend on which packages are installed."""
    from app.connection import KEEP_ALIVE_S, accepted_at_once, http_connection

    return uvicorn.Config(
        app,
        loop="asyncio",  # whose accepting respects the reserve of descriptors
        # It is h11's; httptools loses the body of a request that offers HTTP/2, as Java's do.
        http=http_connection(settings),
        ws="none",
        backlog=accepted_at_once(),
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.shutdown_grace_s,
    )


class _Server(uvicorn.Server):
    """uvicorn's server, which a second Ctrl-C ends at once.

    uvicorn itself would then cancel everything that runs and log tracebacks. A worker whose front
    end is gone ends by itself.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        super().handle_exit(sig, frame)


def listen(settings: Settings) -> socket.socket:
    """Returns the listening socket. Raises CannotServeError if the address is not available."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # The protocol is named, because asyncio switches Nagle's algorithm off only for connections of
    # which it knows that they are TCP. With it, each response on a kept connection takes 40 ms.
    listening = ListeningSocket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # A restart must not wait until the previous server's connections have timed out.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # A client that reads nothing for as long as an answer may take counts as gone. The system then
    # ends its connection, which inherits this option from the listening socket. Otherwise the data
    # that it has not read would be held for as long as it stays connected.
    stalled_ms = min(int(1000 * settings.request_timeout_s), _LONGEST_STALL_MS)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, stalled_ms))
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(_BACKLOG)
        return listening
    except OSError as error:
        listening.close()
        another = error.errno in (errno.EADDRINUSE, errno.EACCES)
        raise CannotServeError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror} "
            f"(settings: {PREFIX}HOST, {PREFIX}PORT{'; port 0 takes any free one' * another})"
        ) from error


class _LogLines(io.StringIO):
    """A file for the console that logs what is written to it.

    It is used if stderr may hold nothing but lines of the log.
    """

    def write(self, text: str, /) -> int:
        if text.strip():
            logger.info(text.strip())
        return len(text)


def announcer(settings: Settings, url: str, console: Console, progress: ProgressLine) -> "Announce":
    """Returns a function that shows how much is loaded and then prints where the server listens."""

    async def announce(states: AsyncIterator[Loading | Ready]) -> None:
        first: LoadedSoFar | None = None
        async for state in states:
            match state:
                case Loading():
                    now = LoadedSoFar(state.loaded_bytes, state.total_bytes, time.monotonic())
                    if first is None or now.loaded_bytes < first.loaded_bytes:
                        first = now  # of this worker's life
                    text = f"loading the model {settings.model}: {now.since(first)}"
                    progress.show(text, now.share)
                case Ready():
                    first = None
                    progress.hide()
                    console.print(banner(settings, url, state), markup=False)

    return announce


@dataclass(frozen=True)
class LoadedSoFar:
    """How much of a model's weights was read, and maybe quantised, at a time."""

    loaded_bytes: int
    total_bytes: int
    at_s: float

    @property
    def share(self) -> float:
        return self.loaded_bytes / max(self.total_bytes, 1)

    def since(self, first: "LoadedSoFar") -> str:
        """Returns the bytes for people, and the rate since `first` and the time left if known."""
        text = f"{gb(self.loaded_bytes)} of {gb(self.total_bytes)}, {int(100 * self.share)} %"
        seconds, loaded = self.at_s - first.at_s, self.loaded_bytes - first.loaded_bytes
        if seconds <= 0 or loaded <= 0:
            return text
        left_s = (self.total_bytes - self.loaded_bytes) * seconds / loaded
        return f"{text}, {gb(round(loaded / seconds))}/s, {left_s:.0f} s left"


def banner(settings: Settings, url: str, ready: Ready) -> str:
    """Returns the lines that say where the server listens, what it serves and how to try it."""
    body = '{"messages": [{"role": "user", "content": "Count to 20"}], "stream": true}'
    return (
        f"\nEasel listens on {url}/v1: {settings.model_names[0]} on {ready.device}, "
        f"{gb(ready.used_bytes)} of memory used, {gb(ready.free_bytes)} free\n"
        f"  model    {', '.join(settings.model_names)} ({ready.dtype}, "
        f"context {ready.context_length} tokens, canvas {ready.canvas_length})\n"
        f"  profile  {ready.profile}\n"
        f"  page     {url}/\n\n"
        f"  curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f"    -d '{body}'\n"
        f"  {command_line(f'chat --url {url}')}\n"
    )
