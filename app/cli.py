"""The command line `easel`, with the commands `serve`, `chat`, `plan`, `models` and so on.

What takes long to import is imported by the command that needs it, so that help texts come at once.
"""

import difflib
import inspect
import json
import runpy
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from rich.console import Console

from app.cluster.options import ClusterOptions
from app.plan_report import PlanError, device_names, make_report, print_report, report_json
from app.settings import PREFIX, Settings, server_url, unknown_variables
from app.terminal import stderr_console
from engine.config import EngineConfig

main = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = stderr_console()

_EVERYWHERE = ("0.0.0.0", "::")  # addresses to listen on that nobody can connect to
_LOOPBACK = "127.0.0.1"
M = TypeVar("M", bound=BaseModel)
_JSON = typer.Option("--json", help="Print JSON instead of a table.")


def _print_version(requested: bool = True) -> None:
    from importlib.metadata import version

    if requested:
        print(version("easel-server"))
        raise typer.Exit


@main.callback()
def easel(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print Easel's version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """An OpenAI-compatible server for block-diffusion language models."""


def _serve_command(**options: str | None) -> None:
    """Start the server. Environment variables set the same options: EASEL_PORT is --port."""
    settings = _settings({k: v for k, v in options.items() if v is not None})
    from app.serve import CannotServeError, serve

    try:
        code = serve(settings, console)
    except CannotServeError as error:
        _refuse(str(error))
    raise typer.Exit(code)


def _settings_as_options(names: Iterable[str]) -> list[inspect.Parameter]:
    """Returns a command-line option for each of these settings. `Settings` checks the values."""
    return _as_options({name: Settings.model_fields[name] for name in names})


def _as_options(fields: Mapping[str, FieldInfo]) -> list[inspect.Parameter]:
    """Returns a command-line option for each of a model's fields. The model checks the values."""
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


def _cluster_command(ray_address: str, **options: str | None) -> None:
    """Start several Easels behind one address, on Ray Serve.

    Each has a worker process of its own, and a GPU if there are any. The options of easel serve
    apply to all of them, and host and port to the address. This needs Ray:
    pip install 'easel-server[ray]'.
    """
    given = {name: value for name, value in options.items() if value is not None}
    own = {name: given.pop(name) for name in ClusterOptions.model_fields if name in given}
    settings, chosen = _settings(given), _checked(ClusterOptions, own, "--")
    try:
        from app.cluster.run import CannotRunError, run
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        _refuse("Ray is not installed; install it with: pip install 'easel-server[ray]'")
    try:
        run(settings, chosen, ray_address, console)
    except CannotRunError as error:
        _refuse(str(error))


_cluster_command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # typer reads it
    [
        inspect.Parameter(
            "ray_address",
            inspect.Parameter.KEYWORD_ONLY,
            default="",
            annotation=Annotated[
                str,
                typer.Option(
                    metavar="",
                    help="Address of a running Ray cluster, or auto for the one of this machine. "
                    "If not set, a cluster is started that has this machine alone.",
                ),
            ],
        ),
        *_as_options(ClusterOptions.model_fields),
        *_settings_as_options(Settings.model_fields),
    ]
)
main.command("cluster")(_cluster_command)


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
            annotation=Annotated[bool, _JSON],
        ),
        *_settings_as_options(name for name in EngineConfig.model_fields if name != "device"),
    ]
)
main.command("plan")(_plan_command)


@main.command()
def chat(
    url: Annotated[
        str,
        typer.Option(
            help="The server's address. By default the one at which `easel serve` listens with the "
            "same environment."
        ),
    ] = "",
    system: Annotated[str, typer.Option(help="Instructions for the model.")] = "",
    drafts: Annotated[bool, typer.Option(help="Show blocks while they are made.")] = True,
) -> None:
    """Chat in the terminal with a running server, and watch blocks denoise.

    Without a terminal, each line of stdin is a message, and its answer is printed. The environment
    variable EASEL_API_KEY has the API key if the server needs one.
    """
    from app.security import KeysUnreadableError, api_keys
    from app.terminal_chat.chat import Chat
    from app.terminal_chat.running_server import RunningServer, ServerError

    settings = _settings({})
    host = _LOOPBACK if settings.host in _EVERYWHERE else settings.host
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it stops an answer, not the chat
    try:
        key = next(iter(api_keys(settings)), "")
        server = RunningServer(url or server_url(host, settings.port), key)
        code = Chat(server, Console(), system=system, drafts=drafts).run()
    except (KeysUnreadableError, ServerError) as error:
        _refuse(str(error))
    except KeyboardInterrupt:
        code = 130
    raise typer.Exit(code)


@main.command("models")
def models_command(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            exists=True,
            file_okay=False,
            help="Folders in which to look for checkpoints, besides the hub's cache.",
        ),
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """List the models that this machine can serve, their sizes, and whether they fit.

    Downloads nothing. `easel plan --model NAME` shows more about one of them.
    """
    from app.servable_models import models_json, print_models, servable_models

    models = servable_models(_settings({}), folders or ())
    if as_json:
        print(json.dumps(models_json(models), indent=2))
    else:
        print_models(models, Console(highlight=False, soft_wrap=True))


@main.command()
def doctor(as_json: Annotated[bool, _JSON] = False) -> None:
    """Say what this machine has for Easel, what is missing, and how to get it.

    The exit code is 1 if something is missing.
    """
    from app.doctor import Machine, findings, findings_json, print_findings
    from app.servable_models import servable_models
    from engine.sizing.gpu import first_gpu

    found = list(findings(Machine.here(first_gpu()), servable_models(_settings({}))))
    if as_json:
        print(json.dumps(findings_json(found), indent=2))
    else:
        print_findings(found, Console(highlight=False, soft_wrap=True))
    raise typer.Exit(int(any(each.state == "missing" for each in found)))


@main.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Measure Easel on this machine. `easel bench --help` lists the measurements."""
    # Run by name, not imported: the measurements use torch, which the front end never imports.
    sys.argv = ["easel bench", *context.args]
    runpy.run_module("bench", run_name="__main__")


@main.command("replay", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def replay_command(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(help="The JSON of an answer with a record, or - for stdin.")
    ],
    url: Annotated[
        str | None,
        typer.Option(
            help="Ask the server at this address. By default one is started, with the options of "
            "easel serve that are given here, such as --model, and ends afterwards."
        ),
    ] = None,
    api_key: Annotated[
        str,
        typer.Option(
            help="The key of the server at --url, if it needs one.", envvar=f"{PREFIX}API_KEY"
        ),
    ] = "",
) -> None:
    """Make a recorded answer again, and say where it differs.

    The exit code is 0 if the answer is the same to the token, 1 if it differs, and 2 if it can't be
    made. docs/replay.md says how answers are recorded.
    """
    from app.own_server import ServerNotStarted, own_server
    from app.replay import ReplayError, differences, made_again, read_record

    if context.args and url is not None:
        _refuse(f"{context.args[0]}: options of easel serve are not allowed with --url")
    try:
        recorded = read_record(file)
        if url is not None:
            made = made_again(recorded, url, api_key)
        else:
            with own_server(context.args, sys.stderr) as address:
                made = made_again(recorded, address)
    except (ReplayError, ServerNotStarted) as error:
        _refuse(str(error))
    if made.fingerprint != recorded.fingerprint:
        console.print(
            f"easel: the fingerprint was {recorded.fingerprint} (version {recorded.version}) and "
            f"is {made.fingerprint} (version {made.version}) now: the model, the version or a "
            "setting is another one",
            markup=False,
        )
    lines = differences(recorded, made)
    blocks = [block for choice in recorded.choices for block in choice.blocks]
    tokens = sum(len(block.token_ids) for block in blocks)
    print("\n".join(lines or [f"the same: {tokens} tokens in {len(blocks)} blocks"]))
    raise typer.Exit(1 if lines else 0)


@main.command("version")
def version_command() -> None:
    """Print Easel's version."""
    _print_version()


def _settings(options: dict[str, Any]) -> Settings:
    unknown = unknown_variables()
    if unknown:
        _refuse("; ".join(f"{name}: no such setting{_suggestion(name)}" for name in unknown))
    return _checked(Settings, options, PREFIX)


def _checked(model: type[M], options: dict[str, Any], prefix: str) -> M:
    """Returns the options as an instance of `model`, or ends with what is wrong with them.

    `prefix` is that of the options' names: EASEL_ for environment variables, -- for options that
    the command line alone has.
    """
    try:
        return model(**options)
    except ValidationError as error:
        for each in error.errors():
            name = "_".join(str(part) for part in each["loc"])
            shown = name.upper() if prefix == PREFIX else name.replace("_", "-")
            # The text of an error of our own has the value already.
            value = "" if each["type"] == "value_error" else f", not {each['input']!r}"
            console.print(f"easel: {prefix}{shown}: {each['msg']}{value}", markup=False)
        sys.exit(2)


def _suggestion(variable: str) -> str:
    known = [name.upper() for name in Settings.model_fields]
    close = difflib.get_close_matches(variable.removeprefix(PREFIX), known, n=1)
    return f" (did you mean {PREFIX}{close[0]}?)" if close else ""


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


if __name__ == "__main__":
    main()
