"""The rows of results, which are written as soon as they are known.

So an early end of the run only loses what has not run yet. This module does not know torch, so that
the results of a broken installation can still be read.

The processes of a run find them by environment variables, which `command.py` sets.
"""

import json
import os
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

# The folder for the results, the folder that is removed afterwards, the time at which the run
# began, and "1" for tiny sizes on the CPU.
OUT, WORK, STARTED, TINY = "BENCH_GPU_OUT", "BENCH_GPU_WORK", "BENCH_GPU_STARTED", "BENCH_GPU_TINY"
ROWS_FILE, LOG_FILE, PROFILE_FILE, SERVER_FILE = (
    "results.jsonl",
    "log.txt",
    "profile.txt",
    "server.txt",
)
LOST_CONTEXT = 3  # the exit status of a stage that could not go on after an error of CUDA

Result = TypeVar("Result")
Results = list[dict[str, Any]]

_REASON = 600  # characters of a failure's reason
# The values that a line of progress shows, in this order.
_SHOWN = {
    "error": "error {:.1e}",
    "rounds_identical": "{:,} rounds identical",
    "ms": "{:.3g} ms",
    "gb_s": "{:,.0f} GB/s",
    "torch_ms": "PyTorch {:.3g} ms",
    "tflops": "{:.3g} TFLOP/s",
    "in_graph_us": "{:.3g} us in a graph",
    "eager_us": "{:.3g} us alone",
    "step_ms": "step {:.3g} ms",
    "network_ms": "network {:.3g} ms",
    "tail_ms": "tail {:.3g} ms",
    "block_ms": "block {:,.0f} ms",
    "roofline_share": "{:.0%} of the roofline",
    "tokens_s_at_15": "{:,.0f} tokens/s at 15 a step",
    "launches": "{:,} launches",
    "captures": "{:,} captures",
    "weights_gb": "{:.3g} GB of weights",
    "driver_gb": "{:.3g} GB in use",
    "ready_s": "ready after {:.3g} s",
    "first_block_s": "first block after {:.2g} s",
    "tokens_s": "{:,.0f} tokens/s",
    "together_tokens_s": "{:,.0f} tokens/s together",
    "s": "{:.3g} s",
}


def out_folder() -> Path:
    """Returns the folder for the results. Raises KeyError outside a stage."""
    return Path(os.environ[OUT])


def work_folder() -> Path:
    """Returns the folder that is removed after the run. Raises KeyError outside a stage."""
    return Path(os.environ[WORK])


def write_row(stage: str, **values: Any) -> None:
    """Add a result to the rows at once, and print it, so that it stands in the log too."""
    line = row_line(stage, time.time() - float(os.environ[STARTED]), values)
    print(line, end="", flush=True)
    with (out_folder() / ROWS_FILE).open("a") as file:
        file.write(line)


def row_line(stage: str, at_s: float, values: dict[str, Any]) -> str:
    """Returns the line of a row that is written `at_s` seconds after the run began."""
    return json.dumps({"stage": stage, "at_s": round(at_s, 1), **values}) + "\n"


def guarded(stage: str, case: str, work: Callable[[], Result]) -> Result | None:
    """Returns what `work` returns. If it raises, write the failure as a row and return None.

    Raises SystemExit after an error of CUDA. The process' CUDA context is lost then, and the next
    stage has its own.
    """
    try:
        return work()
    except Exception as error:  # a kernel, a driver or a library may raise anything
        write_row(stage, case=case, FAILED=f"{type(error).__name__}: {error}"[:_REASON])
        traceback.print_exc()
        if "CUDA error" in str(error):
            raise SystemExit(LOST_CONTEXT) from error
        return None


def read_rows(out: Path) -> Results:
    """Returns the rows in this folder. A line that was cut off by an early end is left out."""
    rows = []
    for line in (out / ROWS_FILE).read_text().splitlines():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def is_failure(row: dict[str, Any]) -> bool:
    """Returns whether a case failed, or its result is wrong."""
    return "FAILED" in row or row.get("ok") is False


def described(row: dict[str, Any]) -> str:
    """Returns a line about a row for people: its case and its most important values."""
    values = [
        form.format(row[name])
        for name, form in _SHOWN.items()
        if isinstance(row.get(name), int | float) and not isinstance(row[name], bool)
    ]
    if "SKIPPED" in row:
        values = [f"skipped, because {row['SKIPPED']}"]
    elif "FAILED" in row:
        values = [f"FAILED: {' '.join(row['FAILED'].split())}"]
    elif row.get("ok") is False:
        values.insert(0, "WRONG")
    elif row.get("identical") is not None:
        values.append("identical" if row["identical"] else "different")
    return f"{row['stage']}: {row['case']}" + (f": {', '.join(values)}" if values else "")
