"""The rows of results, which are written as soon as they are known.

So an early end of the check only loses what has not run yet. This module does not know torch, so
that the results of a broken installation can still be read.
"""

import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

_STARTED = time.perf_counter()
_SUMMARY_KEYS = frozenset(
    [
        "FAILED",
        "ok",
        "identical",
        "rounds_identical",
        "error",
        "ms",
        "gb_s",
        "torch_gb_s",
        "tflops",
        "in_graph_us",
        "eager_us",
        "step_ms",
        "network_ms",
        "tail_ms",
        "whole_ms",
        "products_ms",
        "mixed_ms",
        "draw_ms",
        "same_argmax",
        "same_draws",
        "tokens_s_at_15",
        "dynamic_step_ms",
        "host_to_launch_ms",
        "roofline_share",
        "block_ms",
        "launches",
        "device_ms",
        "ready_s",
        "s",
        "same",
        "graphs_on",
        "captures",
    ]
)


def out_folder() -> Path:
    """Returns the folder for the results. Raises KeyError if OUT is not set."""
    return Path(os.environ["OUT"])


def work_folder() -> Path:
    """Returns the folder that is removed after the check. Raises KeyError if WORK is not set."""
    return Path(os.environ["WORK"])


def write_row(stage: str, **values: Any) -> None:
    """Print a result, and add it to results.jsonl at once."""
    line = json.dumps({"stage": stage, "at_s": round(time.perf_counter() - _STARTED, 1), **values})
    print(line, flush=True)
    with (out_folder() / "results.jsonl").open("a") as file:
        file.write(line + "\n")


def guarded(stage: str, case: str, work: Callable[[], Result]) -> Result | None:
    """Returns what `work` returns. If it raises, write the failure as a row and return None.

    Raises SystemExit after an error of CUDA. The process' CUDA context is lost then, and the next
    stage has its own.
    """
    try:
        return work()
    except Exception as error:  # a kernel, a driver or a library may raise anything
        write_row(stage, case=case, FAILED=f"{type(error).__name__}: {error}"[:600])
        traceback.print_exc()
        if "CUDA error" in str(error):
            raise SystemExit(3) from error
        return None


def failures() -> list[dict[str, Any]]:
    """Returns the rows of failed cases and those of wrong results."""
    return [row for row in _rows() if "FAILED" in row or row.get("ok") is False]


def print_summary() -> None:
    """Print the most important values of all rows, one row a line."""
    for row in _rows():
        values = {
            key: float(f"{value:.4g}") if isinstance(value, float) else value
            for key, value in row.items()
            if key in _SUMMARY_KEYS and value is not None
        }
        case = str(row.get("case", ""))
        print(f"{row['stage'][:16]:16} {case[:52]:52} {json.dumps(values)[:230]}")


def _rows() -> list[dict[str, Any]]:
    return list(map(json.loads, (out_folder() / "results.jsonl").read_text().splitlines()))
