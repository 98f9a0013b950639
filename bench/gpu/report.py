"""The report of a run: Markdown with two plots, made from its rows alone."""

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.gpu.results import LOG_FILE, PROFILE_FILE, ROWS_FILE, SERVER_FILE, is_failure, read_rows

REPORT_FILE = "report.md"
COPY_CASE = "device copy, read and write"  # of the stage "machine"
_KERNELS_PLOT, _STEPS_PLOT = "kernels.png", "steps.png"
_TOP_KERNELS = 5  # of a step's profile

Row = dict[str, Any]
Rows = list[Row]
Columns = dict[str, Callable[[Row], object]]  # of a table: each heading, and its value in a row


def write_report(out: Path) -> Path:
    """Write the report and its plots beside the rows in this folder. Returns the report's path.

    Without matplotlib there are no plots. Raises FileNotFoundError if there are no rows.
    """
    rows = read_rows(out)
    plots = _draw_plots(rows, out) if find_spec("matplotlib") else []
    sections = filter(None, _sections(rows, plots))
    (out / REPORT_FILE).write_text("\n\n".join(sections) + "\n")
    return out / REPORT_FILE


def _sections(rows: Rows, plots: list[str]) -> Iterable[str]:
    """Yield the report's headings, paragraphs and tables. What has no rows is left out."""
    gpu = _one(rows, "machine", "GPU").get("name")
    yield f"# Easel on {gpu or 'a CPU, in tiny sizes, which only shows that all stages run'}"
    yield (
        f"Made by `easel bench gpu` from `{ROWS_FILE}`. `{LOG_FILE}` has what the stages logged, "
        f"`{PROFILE_FILE}` the kernels of a step, `{SERVER_FILE}` the server's logs."
    )
    if not find_spec("matplotlib"):
        yield "There are no plots, because matplotlib is not installed: `pip install matplotlib`."
    yield from _failures(rows)
    yield from _machine(rows)
    yield from _kernels(rows, plots)
    yield from _small_model(rows)
    yield from _released(rows, plots)
    yield from _server(rows)
    yield from _stages(rows)


def _failures(rows: Rows) -> Iterable[str]:
    failures = list(filter(is_failure, rows))
    yield "## Failures"
    if not failures:
        yield "None: no case failed, and no result is wrong."
        return
    columns: Columns = {
        "stage": lambda row: row["stage"],
        "case": _case,
        "what happened": lambda row: row.get("FAILED", "a wrong result"),
    }
    yield _table(failures, columns)


def _machine(rows: Rows) -> Iterable[str]:
    versions, gpu = _one(rows, "machine", "versions"), _one(rows, "machine", "GPU")
    if not versions:
        return
    yield "## The machine"
    facts = {
        "GPU": gpu.get("name"),
        "compute capability": gpu and f"{gpu['major']}.{gpu['minor']}",
        "memory GB": gpu.get("total_gb"),
        "multiprocessors": gpu.get("multi_processor_count"),
        **{name: text for name, text in _one(rows, "machine", "driver").items() if name not in _ID},
        "Python": versions["python"],
        **{name: versions["versions"][name] for name in ("torch", "triton", "transformers")},
        "CUDA of torch": versions["torch_cuda"],
        "missing libraries": ", ".join(versions["missing"]),
    }
    yield _table(
        [{"case": name, "value": value} for name, value in facts.items() if value],
        {"": _case, "value": lambda row: row["value"]},
    )
    ceilings = [row for row in _of(rows, "machine") if "gb_s" in row or "tflops" in row]
    columns: Columns = {"ceiling": _case, "GB/s": _get("gb_s"), "TFLOP/s": _get("tflops")}
    yield _table(ceilings, columns)
    small = [row for row in _of(rows, "machine") if "eager_us" in row]
    columns = {
        "operation on 256 rows": _case,
        "us in a graph": _get("in_graph_us"),
        "us launched alone": _get("eager_us"),
    }
    yield _table(small, columns)


def _kernels(rows: Rows, plots: list[str]) -> Iterable[str]:
    kernels = [row for row in _of(rows, "kernels") if "ms" in row]
    if not kernels:
        return
    copy = _one(rows, "machine", COPY_CASE).get("gb_s")
    yield "## Kernels"
    yield (
        "Each kernel against float32, with PyTorch's time for the same beside its own. The GB/s of "
        "a product are those of its weights, those of attention are of its keys and values. The "
        "ceiling is a copy's bandwidth."
    )
    yield from _plotted(_KERNELS_PLOT, plots)
    columns: Columns = {
        "kernel": _case,
        "right": lambda row: "yes" if row["ok"] else "**no**",
        "error": lambda row: f"{row['error']:.1e}",
        "ms": _get("ms"),
        "GB/s": _get("gb_s"),
        "of the ceiling": lambda row: _percent(copy and "gb_s" in row and row["gb_s"] / copy),
        "TFLOP/s": _get("tflops"),
        "PyTorch ms": _get("torch_ms"),
        "times as fast": lambda row: row["torch_ms"] / row["ms"] if row.get("torch_ms") else None,
    }
    yield _table(kernels, columns)


def _small_model(rows: Rows) -> Iterable[str]:
    checks = [row for row in _of(rows, "model") if _result(row)]
    if checks:
        yield "## A small model's answers"
        yield (
            "Sides that compute the same must be identical in float32. In bfloat16 they may round "
            "differently, which is reported but need not be a fault."
        )
        yield _table(checks, {"check": _case, "result": _result})


def _result(row: Row) -> str | None:
    if "rounds" in row:
        identical = f"{row['rounds_identical']} of {row['rounds']} rounds identical"
        return f"{identical}, {row['captures']} captures"
    if "identical" in row:
        where = row.get("first_difference")
        return (
            "identical"
            if row["identical"]
            else f"**different**{f', from {where}' if where else ''}"
        )
    if row.get("error") is not None:
        return f"error {row['error']:.1e}"
    if "graphs_on" in row:
        return f"graphs {'on' if row['graphs_on'] else '**off**'}, {row['captures']} captures"
    return None


def _released(rows: Rows, plots: list[str]) -> Iterable[str]:
    steps = _steps(rows)
    if not steps:
        return
    yield "## The released size, with random weights"
    yield (
        "The roofline's step reads each weight once at the maker's bandwidth, with products in 16 "
        "bits. `dynamic ms` is a step without CUDA graphs."
    )
    yield from _plotted(_STEPS_PLOT, plots)
    columns: Columns = {
        "weights": lambda row: row["stage"].removeprefix("released "),
        "tokens before": lambda row: f"{row['context']:,}",
        "step ms": _get("step_ms"),
        "roofline ms": _get("roofline_ms"),
        "share": lambda row: _percent(row["roofline_share"]),
        "tokens/s at 15 a step": _get("tokens_s_at_15"),
        "launches": _get("launches"),
        "network ms": _get("network_ms"),
        "tail ms": _get("tail_ms"),
        "dynamic ms": _get("dynamic_step_ms"),
    }
    yield _table(steps, columns)
    blocks = [row for row in rows if "block_ms" in row and row["stage"].startswith("released")]
    columns = {
        "weights": lambda row: row["stage"].removeprefix("released "),
        "canvases": _get("canvases"),
        "block ms": _get("block_ms"),
        "step ms": _get("step_ms"),
        "first pass ms": _get("first_pass_ms"),
        "tokens/s at 15 a step": _get("tokens_s_at_15"),
        "prefill tokens/s": _get("prefill_tokens_s"),
    }
    yield _table(blocks, columns)
    memory = [row for row in rows if row["case"] == "memory" and "planned_gb" in row]
    columns = {
        "weights": lambda row: row["stage"].removeprefix("released "),
        "GB planned": _get("planned_gb"),
        "GB by the driver": _get("driver_gb"),
        "GB of tensors": _get("allocated_gb"),
        "plan": _get("plan"),
    }
    yield _table(memory, columns)
    tops = [
        {"case": row["stage"].removeprefix("released "), "kernel": name, "times": times, "ms": ms}
        for row in rows
        if row["case"].startswith("profile of a step")
        for name, times, ms in row["top"][:_TOP_KERNELS]
    ]
    columns = {
        "weights": _case,
        "kernel": lambda row: f"`{row['kernel']}`",
        "launches": _get("times"),
        "ms a step": _get("ms"),
    }
    yield _table(tops, columns)


def _server(rows: Rows) -> Iterable[str]:
    servers = [row for row in _of(rows, "server") if "ready_s" in row]
    if servers:
        yield "## The server"
        yield "Streamed answers over HTTP, one by one and ten together."
        columns: Columns = {
            "model": _case,
            "ready after s": _get("ready_s"),
            "first block s": _get("first_block_s"),
            "tokens/s": _get("tokens_s"),
            "together: first block s": _get("together_first_block_s"),
            "together: tokens/s": _get("together_tokens_s"),
        }
        yield _table(servers, columns)


def _stages(rows: Rows) -> Iterable[str]:
    ends = [row for row in rows if row["case"] == "whole stage" or "SKIPPED" in row]
    if ends:
        yield "## The stages"
        columns: Columns = {
            "stage": lambda row: row["stage"],
            "s": _get("s"),
            "": lambda row: f"skipped, because {row['SKIPPED']}" if "SKIPPED" in row else None,
        }
        yield _table(ends, columns)


def _steps(rows: Rows) -> Rows:
    """Returns the rows of steps, each joined with those of its profile and its parts."""
    steps = [dict(row) for row in rows if row["case"].startswith("step behind")]
    for step in steps:
        for row in rows:
            if (row["stage"], row.get("context")) != (step["stage"], step["context"]):
                continue
            if row["case"].startswith("profile of a step"):
                step["launches"] = row["launches"]
            elif row["case"] == "parts of a step":
                step |= {name: value for name, value in row.items() if name not in _ID}
    return steps


_ID = ("stage", "at_s", "case")


def _of(rows: Rows, stage: str) -> Rows:
    return [row for row in rows if row["stage"] == stage]


def _one(rows: Rows, stage: str, case: str) -> Row:
    """Returns the row of this case, or an empty one if there is none or it failed."""
    found = (row for row in _of(rows, stage) if row["case"] == case and "FAILED" not in row)
    return next(found, {})


def _case(row: Row) -> object:
    return row["case"]


def _get(name: str) -> Callable[[Row], object]:
    return lambda row: row.get(name)


def _percent(share: float | None) -> str | None:
    return f"{share:.0%}" if share else None


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    text = "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _table(rows: Rows, columns: Columns) -> str:
    """Returns a Markdown table, without the columns that have no value. Of no rows it is empty."""
    cells = {name: [_shown(value(row)) for row in rows] for name, value in columns.items()}
    cells = {name: column for name, column in cells.items() if any(column)}
    if not cells:
        return ""
    lines = [list(cells), ["---"] * len(cells), *map(list, zip(*cells.values(), strict=True))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plotted(file: str, plots: list[str]) -> Iterable[str]:
    if file in plots:
        yield f"![{file.removesuffix('.png')}]({file})"


def _draw_plots(rows: Rows, out: Path) -> list[str]:
    """Draw what the rows allow. Returns the names of the files."""
    import matplotlib

    matplotlib.use("Agg")
    drawn = []
    kernels = [row for row in _of(rows, "kernels") if row.get("gb_s")]
    if kernels:
        copy = _one(rows, "machine", COPY_CASE).get("gb_s")
        ours = [row["gb_s"] for row in kernels]
        # The same bytes in PyTorch's time.
        theirs = [
            row["gb_s"] * row["ms"] / row["torch_ms"] if row.get("torch_ms") else None
            for row in kernels
        ]
        _bars(
            out / _KERNELS_PLOT,
            [row["case"] for row in kernels],
            {"Easel": ours, "PyTorch": theirs},
            label="GB/s",
            line=copy and ("a copy", copy),
        )
        drawn.append(_KERNELS_PLOT)
    steps = _steps(rows)
    if steps:
        names = [f"{row['stage'].removeprefix('released ')}, {row['context']:,}" for row in steps]
        measured = [row["step_ms"] for row in steps]
        least = [row["roofline_ms"] for row in steps]
        _bars(
            out / _STEPS_PLOT,
            names,
            {"a step": measured, "the roofline's": least},
            label="ms, behind so many tokens",
        )
        drawn.append(_STEPS_PLOT)
    return drawn


def _bars(
    file: Path,
    names: list[str],
    sides: dict[str, list[float | None]],
    *,
    label: str,
    line: tuple[str, float] | None = None,
) -> None:
    """Draw a bar for each name and side. `line` is a labelled value across all of them."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.4 * len(names)), layout="constrained")
    height = 0.8 / len(sides)
    for index, ((side, values), colour) in enumerate(
        zip(sides.items(), ("#4c78a8", "#b0b0b0"), strict=True)
    ):
        at = [number + index * height for number, value in enumerate(values) if value]
        lengths = [value for value in values if value]
        if lengths:
            bars = axes.barh(at, lengths, height, label=side, color=colour)
            axes.bar_label(bars, list(map(_shown, lengths)), padding=3, fontsize=8)
    if line:
        axes.axvline(line[1], color="black", linewidth=0.8, linestyle=":", label=line[0])
    middle = (len(sides) - 1) * height / 2
    axes.set_yticks([number + middle for number in range(len(names))], names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(label)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
