"""`python -m bench NAME`, which `easel bench NAME` calls: run one measurement."""

from pathlib import Path
from typing import Annotated, Literal

import torch
import transformers
import typer

from bench import (
    autoregressive,
    counts,
    devices,
    generate,
    graphs,
    interactive,
    quality,
    roofline,
    step,
    synthetic,
    tail,
    turns,
)
from bench.compare import LEAST_ROUNDS, Output, report

main = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Json = Annotated[Path | None, typer.Option("--json", help="Write the rows to this file.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Draw them into this PNG.")]
Rounds = Annotated[int, typer.Option(min=1, help="Pairs of runs, of which the median counts.")]

_SIDES = ["easel_ms", "transformers_ms", "ratio"]


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
            max=len(synthetic.SIZES["26b"].layers),
            help="With --synthetic: only so many layers. All; without a GPU as many as fit.",
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --synthetic: blocks of each form, of which the median counts. "
            f"{LEAST_ROUNDS}; without a GPU 1.",
        ),
    ] = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Measure Easel. Both sides of each comparison alternate in one process, on one thread.

    A model of the released size needs no comparison and no weights: --synthetic 26b.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    alone = {"--layers": layers, "--rounds": rounds, "--json": json, "--plot": plot}
    given = [name for name, value in alone.items() if value is not None]
    if context.invoked_subcommand is None and size is not None:
        output = Output(json, plot)
        trial = synthetic.choose_trial(size, layers=layers, rounds=rounds)
        print(trial)
        report(f"{size}, random weights", synthetic.rows(trial), synthetic.COLUMNS, output)
    elif context.invoked_subcommand is None:
        raise typer.BadParameter("goes with --synthetic or behind a command", param_hint=given)
    elif size is not None or given:
        misplaced = ["--synthetic"] * (size is not None) + given
        raise typer.BadParameter("does not go before a command", param_hint=misplaced)
    else:
        torch.set_num_threads(1)


@main.command("tail")
def tail_command(rounds: Rounds = LEAST_ROUNDS, json: Json = None, plot: Plot = None) -> None:
    """The vocabulary tail against Transformers' ops, V = 262144."""
    report("Vocabulary tail", tail.rows(rounds), [*_SIDES, "bound"], Output(json, plot))


@main.command("step")
def step_command(rounds: Rounds = LEAST_ROUNDS, json: Json = None, plot: Plot = None) -> None:
    """A whole denoising step against Transformers'."""
    report("Denoising step", step.rows(rounds), _SIDES, Output(json, plot))


@main.command("graphs")
def graphs_command(
    rounds: Rounds = LEAST_ROUNDS,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the layers, too.")] = False,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """A denoising step in fixed shapes, a CUDA graph on a GPU, against the dynamic one."""
    columns = ["fixed_ms", "dynamic_ms", "ratio"]
    rows = graphs.rows(rounds, compiled=compiled)
    report("Fixed shapes", rows, columns, Output(json, plot))


@main.command("generate")
def generate_command(rounds: Rounds = LEAST_ROUNDS, json: Json = None, plot: Plot = None) -> None:
    """Whole answers of the demo model against `generate`; memory of a step."""
    columns = [
        "easel_tokens_s",
        "transformers_tokens_s",
        "easel_mib",
        "transformers_mib",
        "ratio",
    ]
    report("Whole answers", generate.rows(rounds), columns, Output(json, plot))


@main.command("turns")
def turns_command(rounds: Rounds = LEAST_ROUNDS, json: Json = None, plot: Plot = None) -> None:
    """Ten turns of a conversation, with and without kept prefixes."""
    columns = [
        "encoded_kept",
        "encoded_not_kept",
        "first_block_kept_ms",
        "first_block_not_kept_ms",
        "ratio",
    ]
    report("Turns of a conversation", turns.rows(rounds), columns, Output(json, plot))


@main.command("interactive")
def interactive_command(
    rounds: Rounds = LEAST_ROUNDS, json: Json = None, plot: Plot = None
) -> None:
    """A person's first block while four jobs run, against an idle worker."""
    columns = ["idle_ms", "busy_ms", "step_ms", "target_ms", "ratio"]
    report("First block among jobs", interactive.rows(rounds), columns, Output(json, plot))


@main.command("versus-autoregressive")
def autoregressive_command(
    rounds: Rounds = LEAST_ROUNDS, json: Json = None, plot: Plot = None
) -> None:
    """Blocks against the same weights token by token."""
    columns = [
        "diffusion_tokens_s",
        "autoregressive_tokens_s",
        "diffusion_passes",
        "autoregressive_passes",
        "ratio",
    ]
    report("Blocks against tokens", autoregressive.rows(rounds), columns, Output(json, plot))


@main.command("roofline")
def roofline_command(json: Json = None, plot: Plot = None) -> None:
    """The least time of a step of the released model, by device: arithmetic."""
    columns = [
        "step_ms",
        "bound",
        *(f"tokens_s_at_{n}" for n in roofline.TOKENS_A_STEP),
        "compute_bound_from",
    ]
    title = f"Roofline of a step, 256 rows behind {roofline.CONTEXT:,} tokens"
    report(title, roofline.rows(), columns, Output(json, plot))


@main.command("quality")
def quality_command(
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts of each task.")] = 20,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Answers and logits of the demo model, and the released one's size, by weights' scheme."""
    columns = ["exact_match", "steps_a_block", "logit_error", "released_gb"]
    report("Quantised weights", quality.rows(prompts), columns, Output(json, plot))


@main.command("devices")
def devices_command(
    markdown: Annotated[bool, typer.Option(help="What docs/devices.md has.")] = False,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """The device profiles, what they need and what they give at best: arithmetic."""
    if markdown:
        print(devices.table(), devices.reasons(), sep="\n\n")
        return
    title = f"Device profiles, the released model, {devices.TOKENS_A_STEP} tokens a step"
    report(title, devices.rows(), devices.COLUMNS, Output(json, plot))


@main.command("counts")
def counts_command(json: Json = None, plot: Plot = None) -> None:
    """Launches, syncs and vocabulary-sized tensors a step, passes an answer."""
    columns = ["launches", "syncs", "vocab_tensors", "blocks", "steps", "passes"]
    report("Counts", counts.rows(), columns, Output(json, plot))


if __name__ == "__main__":
    main()
