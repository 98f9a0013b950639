"""The command `python -m bench NAME`, which `easel bench NAME` calls. It runs one measurement."""

import os
import signal
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import FrameType, ModuleType
from typing import Annotated, Any, Literal

import typer

from app.own_server import ServerNotStarted, own_server
from app.server_client import server_client
from app.settings import PREFIX
from app.terminal import ProgressLine, stderr_console
from bench import devices, roofline
from bench import page as pages
from bench.compare import LEAST_ROUNDS, Output, report
from bench.gpu import stages as gpu_stages
from bench.gpu.results import ROWS_FILE
from engine.config import DEMO_MODEL_PATH
from engine.sizing.gpu import first_gpu

main = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Json = Annotated[Path | None, typer.Option("--json", help="Write the rows to this JSON file.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Draw the rows into this PNG file.")]
Rounds = Annotated[
    int, typer.Option(min=1, help="Pairs of runs to measure. The results are medians.")
]

Tasks = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        readable=True,
        help="Ask the questions of this file instead of the demo model's. Each line is a JSON "
        "object with a prompt (or messages), and an answer or a pattern.",
    ),
]
Page = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        writable=True,
        help="Write the table into this page, such as docs/quality.md, in place of the old one.",
    ),
]
Prompts = Annotated[
    int | None,
    typer.Option(
        min=1, help="Questions to ask for each task. By default 20, or all that a file has."
    ),
]
Model = Annotated[
    str, typer.Option(help="The model, as for the server: 'demo', a folder, or a hub id.")
]
MaxTokens = Annotated[
    int, typer.Option(min=1, help="Maximum number of tokens of an answer to a file's question.")
]


@main.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    size: Annotated[
        Literal["26b"] | None,
        typer.Option("--synthetic", help="Measure a model of this size with random weights."),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=len(roofline.released().layers),
            help="With --synthetic: measure only this many layers. "
            "By default all of them, or without a GPU as many as fit in memory.",
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --synthetic: blocks to measure for each format. The results are medians. "
            f"By default {LEAST_ROUNDS}, or without a GPU 1.",
        ),
    ] = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Measure Easel, most often in comparison with Transformers.

    The two sides of a comparison run alternately in one process, on one thread.

    --synthetic 26b measures a model of the released size with random weights, without a download.
    """
    options = {"--layers": layers, "--rounds": rounds, "--json": json, "--plot": plot}
    given = [name for name, value in options.items() if value is not None]
    if context.invoked_subcommand is None and size is not None:
        _measure_synthetic(size, layers, rounds, Output(json, plot))
    elif context.invoked_subcommand is None:
        raise typer.BadParameter(
            "can only be used with --synthetic or after a command", param_hint=given
        )
    elif size is not None or given:
        misplaced = ["--synthetic"] * (size is not None) + given
        raise typer.BadParameter("can't be used before a command", param_hint=misplaced)


def _measure_synthetic(size: str, layers: int | None, rounds: int | None, output: Output) -> None:
    with ProgressLine(stderr_console(), animated=False) as progress:
        synthetic = _imported("synthetic", progress)
        with _tidy_interrupt():
            trial = synthetic.choose_trial(size, layers=layers, rounds=rounds)
            progress.hide()
            print(trial)
            rows = synthetic.rows(trial, show=progress.show)
            title = f"{size}, random weights"
            report(title, rows, synthetic.COLUMNS, output, hide=progress.hide)


def _measure(name: str, title: str, output: Output, **options: Any) -> None:
    """Run the measurement `bench/NAME.py` on one thread. `options` are its own.

    Its `rows` and `COLUMNS` are what is reported.
    """
    # The line is not animated, because a thread that draws would take part in what is measured.
    with ProgressLine(stderr_console(), animated=False) as progress:
        measurement = _imported(name, progress)
        import torch

        torch.set_num_threads(1)
        with _tidy_interrupt():
            rows = measurement.rows(**options, show=progress.show)
            report(title, rows, measurement.COLUMNS, output, hide=progress.hide)


def _check_page(page: Path | None, name: str) -> None:
    if page is not None:
        pages.check(page, name)


def _write_page(page: Path | None, name: str, table: str) -> None:
    if page is not None:
        pages.write(page, name, table)


def _imported(name: str, progress: ProgressLine) -> ModuleType:
    progress.show("importing PyTorch and Transformers")
    # PyTorch's profiler, which measures memory, reads this. It would print lines of its own.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return import_module(f"bench.{name}")


@contextmanager
def _tidy_interrupt() -> Iterator[None]:
    """Let Ctrl-C remove temporary files before it ends the process. A second one does not wait."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@main.command("tail")
def tail_command(rounds: Rounds = LEAST_ROUNDS, json: Json = None, plot: Plot = None) -> None:
    """Compare the vocabulary tail with Transformers' operations, at V = 262144."""
    _measure("tail", "Vocabulary tail", Output(json, plot), rounds=rounds)


@main.command("step")
def step_command(rounds: Rounds = LEAST_ROUNDS, json: Json = None, plot: Plot = None) -> None:
    """Compare a whole denoising step with Transformers'."""
    _measure("step", "Denoising step", Output(json, plot), rounds=rounds)


@main.command("graphs")
def graphs_command(rounds: Rounds = LEAST_ROUNDS, json: Json = None, plot: Plot = None) -> None:
    """Compare a denoising step in fixed shapes, on a GPU a CUDA graph, with a dynamic one."""
    _measure("graphs", "Fixed shapes", Output(json, plot), rounds=rounds)


@main.command("generate")
def generate_command(rounds: Rounds = LEAST_ROUNDS, json: Json = None, plot: Plot = None) -> None:
    """Compare whole answers of the demo model, and a step's memory, with Transformers'."""
    _measure("generate", "Whole answers", Output(json, plot), rounds=rounds)


@main.command("turns")
def turns_command(rounds: Rounds = LEAST_ROUNDS, json: Json = None, plot: Plot = None) -> None:
    """Time ten turns of a conversation, with and without kept prefixes."""
    _measure("turns", "Turns of a conversation", Output(json, plot), rounds=rounds)


@main.command("interactive")
def interactive_command(
    rounds: Rounds = LEAST_ROUNDS, json: Json = None, plot: Plot = None
) -> None:
    """Time the first block of a request while four jobs run, and on an idle worker."""
    _measure("interactive", "First block among jobs", Output(json, plot), rounds=rounds)


@main.command("drafts")
def drafts_command(rounds: Rounds = LEAST_ROUNDS, json: Json = None, plot: Plot = None) -> None:
    """Time denoising steps with and without drafts that are sent."""
    _measure("drafts", "Drafts", Output(json, plot), rounds=rounds)


@main.command("decisions")
def decisions_command(rounds: Rounds = LEAST_ROUNDS, json: Json = None, plot: Plot = None) -> None:
    """Time decisions behind a kept prefix against passes, each other and an answer."""
    _measure("decisions", "Decisions", Output(json, plot), rounds=rounds)


@main.command("calibration")
def calibration_command(
    tasks: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            readable=True,
            help="Ask the decisions of this file instead of the demo model's. Each line is a body "
            "of POST /v1/systemone with the right answers by question.",
        ),
    ] = None,
    prompts: Annotated[
        int, typer.Option(min=1, help="The demo model's decisions to ask for each task.")
    ] = 50,
    model: Model = "demo",
    url: Annotated[
        str | None,
        typer.Option(help="Ask the server at this address. By default one is started."),
    ] = None,
    api_key: Annotated[
        str,
        typer.Option(
            help="The key of the server at --url, if it needs one.", envvar=f"{PREFIX}API_KEY"
        ),
    ] = "",
    page: Page = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Count right decisions, and say how well their probabilities are calibrated."""
    output = Output(json, plot)
    with ProgressLine(stderr_console(), animated=False) as progress, ExitStack() as stack:
        calibration = _imported("calibration", progress)
        _check_page(page, "calibration")
        lines = list(
            calibration.demo_lines(prompts) if tasks is None else calibration.read_file(tasks)
        )
        asked = url or model
        if url is None:
            progress.show("starting a server")
            url, api_key = stack.enter_context(_own_server(model)), ""
        with _tidy_interrupt(), server_client(url, api_key) as server:
            measured = calibration.rows(server, lines, show=progress.show)
            columns, draw = calibration.COLUMNS, calibration.draw
            rows = report("Calibration", measured, columns, output, hide=progress.hide, draw=draw)
    _write_page(page, "calibration", calibration.table(asked, rows))


@contextmanager
def _own_server(model: str) -> Iterator[str]:
    """Yields the address of a server of the model, which ends afterwards."""
    log = StringIO()
    try:
        with own_server(["--model", model], log) as url:
            yield url
    except ServerNotStarted as error:
        raise typer.BadParameter(f"{error}\n{log.getvalue()}") from error


@main.command("versus-autoregressive")
def autoregressive_command(
    rounds: Rounds = LEAST_ROUNDS, json: Json = None, plot: Plot = None
) -> None:
    """Compare block diffusion with token-by-token decoding by the same weights."""
    _measure("autoregressive", "Blocks against tokens", Output(json, plot), rounds=rounds)


@main.command("cluster")
def cluster_command(rounds: Rounds = 30, json: Json = None, plot: Plot = None) -> None:
    """Compare two replicas behind one address, on Ray Serve, with one Easel."""
    _measure("cluster", "Cached prompt tokens", Output(json, plot), rounds=rounds)


@main.command("roofline")
def roofline_command(json: Json = None, plot: Plot = None) -> None:
    """Compute the least time of a step of the released model on each device."""
    title = f"Roofline of a step, 256 rows behind {roofline.CONTEXT:,} tokens"
    report(title, roofline.rows(), roofline.COLUMNS, Output(json, plot))


@main.command("formats")
def formats_command(
    prompts: Annotated[
        int, typer.Option(min=1, help="Held-out prompts to answer for each task.")
    ] = 20,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Compare weight formats: the demo model's answers and logits, the released model's size."""
    _measure("formats", "Quantised weights", Output(json, plot), prompts=prompts)


@main.command("quality")
def quality_command(
    tasks: Tasks = None,
    prompts: Prompts = None,
    model: Model = "demo",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Draw a second curve with this option of the worker or the sampler changed. Can "
            "be given several times.",
        ),
    ] = None,
    predict: Annotated[
        bool,
        typer.Option(
            "--predict",
            help="Draw one more curve for answers that are predicted, and ask only questions that "
            "have a prediction: the demo model's edits, or the lines of a file with one.",
        ),
    ] = False,
    max_tokens: MaxTokens = 1024,
    page: Page = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Measure accuracy against denoising steps, by task, and the area under that curve (AUP)."""
    output = Output(json, plot)
    with ProgressLine(stderr_console(), animated=False) as progress:
        quality, questions = (_imported(name, progress) for name in ("quality", "questions"))
        _check_page(page, "quality")
        lines = None if tasks is None else questions.read_file(tasks)
        compared = quality.sides(model, settings or [])
        if predict:
            compared = quality.predicted(compared)
        with _tidy_interrupt():
            measured = quality.rows(compared, lines, prompts, max_tokens, show=progress.show)
            title, columns, draw = "Accuracy against steps", quality.COLUMNS, quality.draw
            rows = report(title, measured, columns, output, hide=progress.hide, draw=draw)
    _write_page(page, "quality", quality.table(model, rows))


@main.command("dial")
def dial_command(
    tasks: Tasks = None,
    prompts: Prompts = None,
    model: Model = "demo",
    max_tokens: MaxTokens = 1024,
    page: Page = None,
    json: Json = None,
) -> None:
    """Measure the denoising steps that each quality saves and the accuracy that it costs."""
    output = Output(json)
    with ProgressLine(stderr_console(), animated=False) as progress:
        dial, questions = (_imported(name, progress) for name in ("dial", "questions"))
        _check_page(page, "dial")
        lines = None if tasks is None else questions.read_file(tasks)
        with _tidy_interrupt():
            measured = dial.rows(model, lines, prompts, max_tokens, show=progress.show)
            rows = report("The dial", measured, dial.COLUMNS, output, hide=progress.hide)
    _write_page(page, "dial", dial.table(model, rows))


@main.command("devices")
def devices_command(
    markdown: Annotated[
        bool, typer.Option(help="Print the part of docs/devices.md that is generated.")
    ] = False,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Compute what each device profile needs and how fast it can be at best."""
    if markdown:
        print(devices.table(), devices.reasons(), sep="\n\n")
        return
    title = f"Device profiles, the released model, {devices.TOKENS_A_STEP} tokens a step"
    report(title, devices.rows(), devices.COLUMNS, Output(json, plot))


@main.command("gpu")
def gpu_command(
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder for the report, its rows and logs. By default a new one in this "
            "folder, named by the time."
        ),
    ] = None,
    stages: Annotated[
        str, typer.Option(help=f"The stages to run, of {', '.join(gpu_stages.NAMES)}.")
    ] = ",".join(gpu_stages.NAMES),
    formats: Annotated[
        str,
        typer.Option(
            help="The formats of the released size's weights, of "
            f"{', '.join(gpu_stages.FORMATS)}. int8x and int4x quantise the experts only, int4 has "
            "linears in int8, and small quantises everything."
        ),
    ] = ",".join(gpu_stages.DEFAULT_FORMATS),
    minutes: Annotated[
        float, typer.Option(min=1, help="The most minutes that the run may take.")
    ] = gpu_stages.MINUTES,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Run the same code on a CPU, in tiny sizes.")
    ] = False,
    made: Annotated[
        Path | None,
        typer.Option("--report", help="Only make the report of this folder again, from its rows."),
    ] = None,
) -> None:
    """Check Easel on a machine with a GPU: kernels, answers, speed and the server.

    The exit status is 1 if a stage or a case failed, or if a result is wrong.
    """
    from bench.gpu.command import Run
    from bench.gpu.report import write_report

    if made is not None:
        try:
            print(write_report(made))
        except FileNotFoundError:
            raise typer.BadParameter(f"{made} has no {ROWS_FILE}", param_hint="--report") from None
        return
    chosen = gpu_stages.planned(
        _of_names(stages, gpu_stages.NAMES, "--stages"),
        _of_names(formats, gpu_stages.FORMATS, "--formats"),
    )
    gpu = first_gpu()
    if gpu is None and not tiny:
        raise typer.BadParameter(
            "NVIDIA's driver reports no GPU on this machine. --tiny runs the same code on the CPU."
        )
    out = out or Path(f"easel-gpu-{datetime.now():%Y-%m-%d-%H%M%S}")
    print(
        f"Easel on {gpu.name if gpu and not tiny else 'the CPU, in tiny sizes'}: "
        f"at most {minutes:g} minutes, results in {out}",
        flush=True,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the stage too
    run = Run(out, minutes=minutes, tiny=tiny, say=partial(print, flush=True))
    raise typer.Exit(0 if run.stages(list(chosen)) else 1)


def _of_names(given: str, allowed: Collection[str], option: str) -> list[str]:
    """Returns the names in this text, which commas separate."""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if unknown := [name for name in names if name not in allowed]:
        raise typer.BadParameter(
            f"{unknown[0]!r} is unknown: allowed are {', '.join(allowed)}", param_hint=option
        )
    return names


@main.command("counts")
def counts_command(json: Json = None, plot: Plot = None) -> None:
    """Count the launches, syncs and vocabulary-sized tensors of a step, and an answer's passes."""
    _measure("counts", "Counts", Output(json, plot))


@main.command("sass")
def sass_command(
    gpus: Annotated[
        list[str] | None,
        typer.Option("--gpu", help="Only this compute capability, such as 9.0. Repeatable."),
    ] = None,
    kernel: Annotated[
        str, typer.Option("--kernel", help="Only launches with this text in their names.")
    ] = "",
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Count the instructions of the kernels' inner loops, compiled for several GPUs."""
    with ProgressLine(stderr_console(), animated=False) as progress:
        sass = _imported("sass", progress)
        with _tidy_interrupt():
            try:
                targets = sass.find_targets(gpus)
            except ValueError as error:
                raise typer.BadParameter(str(error), param_hint="--gpu") from error
            rows = sass.rows(targets, kernel, show=progress.show)
            report("Inner loops", rows, sass.COLUMNS, Output(json, plot), hide=progress.hide)


@main.command("schemas")
def schemas_command(
    folder: Annotated[
        Path,
        typer.Argument(
            exists=True, file_okay=False, help="The folder maskbench/data of jsonschemabench."
        ),
    ],
    tokenizer: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="A tokenizer.json.")
    ] = DEMO_MODEL_PATH / "tokenizer.json",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Judge only so many files, drawn at random.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of --limit and of the order.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Judge so many files at a time.")] = 1,
    results: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Append the result of each file to this file of JSON lines when it is known. "
            "Files that already have a result there are not judged again.",
        ),
    ] = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Compile the schemas of JSONSchemaBench, and judge their instances, in MaskBench's columns."""
    options = {"folder": folder, "tokenizer": tokenizer, "limit": limit, "seed": seed}
    options |= {"processes": processes, "results": results}
    _measure("schemas", "Schemas", Output(json, plot), **options)


@main.command("constraint")
def constraint_command(
    tokenizer: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="A tokenizer.json.")
    ] = DEMO_MODEL_PATH / "tokenizer.json",
    rounds: Rounds = LEAST_ROUNDS,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Time what a constraint costs: once, and in a step that corrects a draft."""
    output = Output(json, plot)
    _measure("constraint", "Constraints", output, tokenizer=tokenizer, rounds=rounds)


@main.command("forms")
def forms_command(
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts to answer.")] = 60,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Count right answers and denoising steps with and without a demanded form."""
    _measure("forms", "Demanded forms", Output(json, plot), prompts=prompts)


if __name__ == "__main__":
    main(prog_name="easel bench")
