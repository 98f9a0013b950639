"""Measures two sides fairly and reports rows of results as a table, as JSON and as a plot.

Machines are noisy, so both sides run alternately in one process, and each round runs both. The
ratio is that of the medians, and its spread is that of the rounds.
"""

import gc
import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import torch

Row = dict[str, Any]  # has at least `case`; a comparison also has `ratio` and its spread
Show = Callable[[str], None]  # shows what is being done now
Draw = Callable[[str, list[Row], Path], None]  # draws rows under a title into a file

LEAST_ROUNDS = 7
COMPARED = ["easel_ms", "transformers_ms", "ratio"]  # the columns of what `alternate` returns


@dataclass(frozen=True)
class Output:
    """The files that the rows are written to, besides the terminal."""

    json: Path | None = None
    plot: Path | None = None

    def __post_init__(self) -> None:
        """Raises typer.BadParameter, before anything is measured, if a file can't be written."""
        for file in filter(None, (self.json, self.plot)):
            if not file.parent.is_dir():
                raise typer.BadParameter(f"the folder {file.parent} does not exist")
        if self.plot and not find_spec("matplotlib"):
            raise typer.BadParameter("needs matplotlib: pip install 'easel-server[bench]'")


def silent(_text: str) -> None:
    """Show nothing."""


def of_case(show: Show, case: str) -> Show:
    """Returns a function that shows texts about this case."""
    return lambda text: show(f"{case}: {text}")


def alternate(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    rounds: int = LEAST_ROUNDS,
    show: Show = silent,
) -> Row:
    """Run both sides once to warm up, then alternately in `rounds` rounds.

    Returns the medians in milliseconds, and their ratio theirs / ours with its spread.
    """
    sides = [ours, theirs]
    show("warming up")
    for run in sides:
        run()
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds):
        show(f"round {turn + 1} of {rounds}")
        for side in [0, 1] if turn % 2 else [1, 0]:
            gc.collect()
            started = perf_counter()
            sides[side]()
            seconds[side].append(perf_counter() - started)
    pairs = [their / our for our, their in zip(*seconds, strict=True)]
    our_median, their_median = map(statistics.median, seconds)
    return {
        "easel_ms": our_median * 1e3,
        "transformers_ms": their_median * 1e3,
        "ratio": their_median / our_median,
        "ratio_low": min(pairs),
        "ratio_high": max(pairs),
        "rounds": rounds,
    }


def peak_bytes(work: Callable[[], object], device: "torch.device | None" = None) -> int:
    """Returns the most bytes of tensors that `work` holds at any moment, less those held before it.

    They are those on `device`, by default the CPU, where torch's allocator counts them, because the
    size of the process depends on more than tensors. On a GPU its driver reports everything that is
    taken, which includes graphs and libraries.
    """
    # Imported here, so that help texts need not wait for torch.
    import torch
    from torch.profiler import ProfilerActivity, profile

    from engine.device import taken_memory

    gc.collect()
    if device is not None and device.type == "cuda":
        # torch's allocator keeps what it has once taken, so that the last figure is the largest.
        torch.cuda.empty_cache()
        before = taken_memory(device)
        work()
        return taken_memory(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profiled.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    held: Iterator[int] = accumulate((nbytes for _, nbytes in changes), initial=0)
    return max(held)


def report(
    title: str,
    rows: Iterable[Row],
    columns: list[str],
    output: Output,
    *,
    hide: Callable[[], None] = lambda: None,
    draw: Draw | None = None,
) -> list[Row]:
    """Print each case once it is measured, then a table; then draw the requested plot.

    Returns the rows.

    The requested JSON file is written again with each row, so that an early end loses none.

    If the terminal is too narrow for all columns, several tables are printed. Columns for which no
    row has a value are left out. `hide` is called before anything is printed. `draw` makes the
    plot, by default one of bars.
    """
    console = Console(markup=False)  # a case may hold the text of an error
    done = []
    for row in rows:
        hide()
        console.print(row["case"], style="dim")
        done.append(row)
        if output.json:
            output.json.write_text(json.dumps(done, indent=2) + "\n")
    hide()
    columns = [column for column in columns if any(_cell(row, column) for row in done)]
    # A long case wraps to two or three lines.
    case_width = min(2 * console.width // 5, max((len(row["case"]) for row in done), default=0))
    for some in _fitting(columns, done, console.width - case_width - 4):
        table = Table(title=title, title_justify="left")
        table.add_column("case", width=case_width)
        for column in some:
            table.add_column(_heading(column), width=_width(column, done))
        for row in done:
            table.add_row(row["case"], *(_cell(row, column) for column in some))
        console.print(table)
    if output.plot:
        (draw or _plot)(title, done, output.plot)
    return done


def _fitting(columns: list[str], rows: list[Row], room: int) -> Iterator[list[str]]:
    """Yield the columns in groups that each fit into a table of this width."""
    some: list[str] = []
    left = room
    for column in columns:
        needs = _width(column, rows) + 3  # a line and two spaces
        if some and needs > left:
            yield some
            some, left = [], room
        some.append(column)
        left -= needs
    yield some


def _width(column: str, rows: list[Row]) -> int:
    """Returns the least width that cuts no word of the heading and no cell."""
    return max(map(len, [*_heading(column).split(), *(_cell(row, column) for row in rows)]))


def _heading(column: str) -> str:
    return column.replace("_", " ")


def _cell(row: Row, column: str) -> str:
    if column == "ratio" and row.get("ratio_low", row.get("ratio")) != row.get("ratio"):
        return f"{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"
    return _shown(row.get(column))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _plot(title: str, rows: list[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    number = "ratio" if "ratio" in rows[0] else next(k for k in rows[0] if k != "case")
    rows = [row for row in rows if row.get(number) is not None]
    figure, axes = pyplot.subplots(figsize=(8, 0.6 + 0.45 * len(rows)), layout="constrained")
    cases, values = [row["case"] for row in rows], [row[number] for row in rows]
    axes.barh(cases, values, color="#4c78a8")
    if number == "ratio":
        errors = [
            [max(row["ratio"] - row["ratio_low"], 0) for row in rows],
            [max(row["ratio_high"] - row["ratio"], 0) for row in rows],
        ]
        axes.errorbar(values, cases, xerr=errors, fmt="none", ecolor="black", capsize=3)
        axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    for index, row in enumerate(rows):
        end = (row.get("ratio_high", row[number]), index)  # at the end of the error bar
        axes.annotate(_shown(row[number]), end, (6, 0), textcoords="offset points", va="center")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast" if number == "ratio" else number.replace("_", " "))
    axes.set_title(title, loc="left")
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
