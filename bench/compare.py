"""Two sides measured fairly, and what comes of it: a table, JSON, a plot.

Machines are noisy, so both sides run in one process, by turns, and each round is a pair: the ratio
is that of the medians, and its spread is that of the rounds.
"""

import gc
import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]  # has at least `case`; with two sides also `ratio` and its spread

LEAST_ROUNDS = 7


@dataclass(frozen=True)
class Output:
    """Where the rows go besides the terminal."""

    json: Path | None = None
    plot: Path | None = None


def alternate(
    ours: Callable[[], object], theirs: Callable[[], object], *, rounds: int = LEAST_ROUNDS
) -> Row:
    """Run both once to warm up, then by turns; medians in milliseconds, ratio = theirs / ours."""
    sides = [ours, theirs]
    for side in sides:
        side()
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds):
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


def peak_bytes(work: Callable[[], object]) -> int:
    """How much the process grows at most while `work` runs (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the last peak
    before = _status_bytes("VmRSS")
    work()
    return _status_bytes("VmHWM") - before


def report(title: str, rows: Iterable[Row], columns: list[str], output: Output) -> None:
    """Print a table as the rows come; then write what was asked for."""
    console = Console()
    table = Table("case", *columns, title=title, title_justify="left")
    done = []
    for row in rows:
        console.print(f"[dim]{row['case']}", markup=True)
        table.add_row(row["case"], *(_shown(row.get(column)) for column in columns))
        done.append(row)
    console.print(table)
    if output.json:
        output.json.write_text(json.dumps(done, indent=2) + "\n")
    if output.plot:
        _plot(title, done, output.plot)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def _plot(title: str, rows: list[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    number = "ratio" if "ratio" in rows[0] else next(k for k in rows[0] if k != "case")
    figure, axes = pyplot.subplots(figsize=(8, 0.6 + 0.45 * len(rows)), layout="constrained")
    cases, values = [row["case"] for row in rows], [row[number] for row in rows]
    bars = axes.barh(cases, values, color="#4c78a8")
    if number == "ratio":
        errors = [
            [max(row["ratio"] - row["ratio_low"], 0) for row in rows],
            [max(row["ratio_high"] - row["ratio"], 0) for row in rows],
        ]
        axes.errorbar(values, cases, xerr=errors, fmt="none", ecolor="black", capsize=3)
        axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.bar_label(bars, labels=[_shown(value) for value in values], padding=14)
    axes.margins(x=0.18)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast" if number == "ratio" else number.replace("_", " "))
    axes.set_title(title, loc="left")
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
