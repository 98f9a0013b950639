"""The command line `easel`, with the commands `serve`, `plan`, `bench` and `version`."""

import asyncio
import inspect
import io
import json
import logging
import runpy
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterable
from importlib.metadata import version as installed_version
from typing import Annotated, Any, NoReturn

import typer
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape

from app.logs import configure_logs
from app.plan_report import PlanError, device_names, make_report, print_report, report_json
from app.security import KeysUnreadableError, api_keys, is_loopback
from app.server import Announce, create_app
from app.settings import PREFIX, Settings, unknown_variables
from engine.config import EngineConfig
from engine.messages import Loading, Ready

_BACKLOG = 2048  # connections that may wait to be accepted; uvicorn's default
_LONGEST_STALL_MS = 2**31 - 1  # the largest value of the socket option TCP_USER_TIMEOUT
# Clients close idle connections sooner (httpx after 5 s). So no client sends a request on a
# connection that the server is about to close.
_KEEP_ALIVE_S = 75
_PROGRESS_EVERY_S = 2.0

logger = logging.getLogger("app.cli")  # also if this file runs as __main__

main = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
# Lines are not wrapped, because a wrapped path or curl line could not be pasted.
console = Console(stderr=True, highlight=False, soft_wrap=True)


@main.callback()
def easel() -> None:
    """An OpenAI-compatible server for block-diffusion language models."""


@main.command()
def version() -> None:
    """Print Easel's version."""
    print(installed_version("easel-server"))


@main.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Measure Easel on this machine. `easel bench --help` lists the measurements."""
    # Run by name, not imported: the measurements use torch, which the front end never imports.
    sys.argv = ["easel bench", *context.args]
    runpy.run_module("bench", run_name="__main__")


def _serve_command(**options: str | None) -> None:
    """Start the server. Environment variables set the same options: EASEL_PORT is --port."""
    raise typer.Exit(_serve(_settings({k: v for k, v in options.items() if v is not None})))


def _settings_as_options(names: Iterable[str]) -> list[inspect.Parameter]:
    """Returns a command-line option for each of these settings. `Settings` checks the values."""
    fields = {name: Settings.model_fields[name] for name in names}
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                str | None,
                typer.Option(help=_help(field), metavar=""),
            ],
        )
        for name, field in fields.items()
    ]


def _help(field: FieldInfo) -> str:
    default = "not set" if str(field.default) in ("", "None") else field.default
    return f"{field.description} Default: {default}."


_serve_command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # typer reads it
    _settings_as_options(Settings.model_fields)
)
main.command("serve")(_serve_command)


def _plan_command(device: str, as_json: bool, **options: str | None) -> None:
    """Show how much of a device's memory a model needs, and what fits.

    Downloads no weights and needs no GPU: the device need not be in this machine. The exit code is
    1 if the model does not fit.
    """
    settings = _settings({k: v for k, v in options.items() if v is not None})
    raise typer.Exit(_plan(settings, device, as_json=as_json))


_plan_command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # typer reads it
    [
        inspect.Parameter(
            "device",
            inspect.Parameter.KEYWORD_ONLY,
            default="auto",
            annotation=Annotated[
                str,
                typer.Option(
                    help=f"The device to plan for: {', '.join(device_names())}. auto is this "
                    "machine's GPU, or its CPU if it has none."
                ),
            ],
        ),
        inspect.Parameter(
            "as_json",
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[
                bool, typer.Option("--json", help="Print JSON instead of a table.")
            ],
        ),
        *_settings_as_options(name for name in EngineConfig.model_fields if name != "device"),
    ]
)
main.command("plan")(_plan_command)


def _settings(options: dict[str, Any]) -> Settings:
    unknown = unknown_variables()
    if unknown:
        _refuse(f"{', '.join(unknown)}: no such setting")
    try:
        return Settings(**options)
    except ValidationError as error:
        for each in error.errors():
            name = "_".join(str(part) for part in each["loc"])
            console.print(f"easel: {PREFIX}{name.upper()}: {each['msg']}", markup=False)
        sys.exit(2)


def _refuse(message: str) -> NoReturn:
    console.print(f"easel: {message}", markup=False)
    sys.exit(2)


def _plan(settings: Settings, device: str, *, as_json: bool) -> int:
    try:
        report = make_report(settings, device)
    except PlanError as error:
        _refuse(str(error))
    if as_json:
        print(json.dumps(report_json(report), indent=2))
    else:
        print_report(report, Console(highlight=False, soft_wrap=True))
    return 0 if report.fits else 1


def _serve(settings: Settings) -> int:
    configure_logs(settings.log_level, settings.log_format)
    if settings.log_format == "json":
        console.file = _LogLines()
    listening = _listen(settings)
    url = _url(settings.host, listening.getsockname()[1])
    console.print(f"easel: listening on {url}; loading the model {settings.model}", markup=False)
    try:
        app = create_app(settings, _announcer(settings, url))
    except KeysUnreadableError as error:
        _refuse(str(error))
    except Exception as error:  # tokenizers raises a bare Exception for a missing file
        _refuse(f"model {settings.model!r} cannot be read: {error}")
    if not is_loopback(settings.host) and not api_keys(settings):
        console.print(
            f"[bold red]easel: anyone who can reach {escape(settings.host)} can use this server; "
            f"set {PREFIX}API_KEY to require a key.[/bold red]"
        )
    config = _server_config(app, settings)
    # uvicorn shuts down in order and then raises the signal again. It is ignored then, because a
    # server that ends on request exits with code 0.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run([listening])
    failure = getattr(app.state, "worker_error", None)
    if failure is not None:
        console.print(f"easel: {failure}", markup=False)
        return 1
    return 0


def _server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Returns uvicorn's configuration, which does not depend on which packages are installed."""
    return uvicorn.Config(
        app,
        http="h11",  # httptools loses the body of a request that offers HTTP/2, as Java's do
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.shutdown_grace_s,
    )


def _listen(settings: Settings) -> socket.socket:
    """Returns the listening socket, or exits if the address or port is not available.

    Call this before anything is loaded, so that a taken port is reported at once.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # The protocol is named, because asyncio switches Nagle's algorithm off only for connections of
    # which it knows that they are TCP. With it, each response on a kept connection takes 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
        _refuse(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror} "
            f"(settings: {PREFIX}HOST, {PREFIX}PORT)"
        )


class _LogLines(io.StringIO):
    """A file for the console that logs what is written to it.

    It is used if stderr may hold nothing but lines of the log.
    """

    def write(self, text: str, /) -> int:
        if text.strip():
            logger.info(text.strip())
        return len(text)


def _announcer(settings: Settings, url: str) -> Announce:
    """Returns a function that prints how much is loaded and then where the server listens."""

    async def announce(states: AsyncIterator[Loading | Ready]) -> None:
        next_at = time.monotonic() + _PROGRESS_EVERY_S
        async for state in states:
            if isinstance(state, Ready):
                line = _banner(settings, url, state)
            elif time.monotonic() > next_at:
                next_at = time.monotonic() + _PROGRESS_EVERY_S
                percent = 100 * state.loaded_bytes // max(state.total_bytes, 1)
                line = f"Loading {settings.model}: {percent} %"
            else:
                continue
            # Off the event loop, because writing to a terminal may block.
            await asyncio.to_thread(console.print, line, markup=False)

    return announce


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _banner(settings: Settings, url: str, ready: Ready) -> str:
    body = '{"messages": [{"role": "user", "content": "Count to 20"}], "stream": true}'
    return (
        f"\nEasel listens on {url}/v1\n"
        f"  model    {settings.model} ({ready.dtype}, context {ready.context_length} tokens, "
        f"canvas {ready.canvas_length})\n"
        f"  device   {ready.device}\n"
        f"  profile  {ready.profile}\n\n"
        f"  curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f"    -d '{body}'\n"
    )


if __name__ == "__main__":
    main()
