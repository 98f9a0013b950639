"""Runs the stages of `easel bench gpu`, each as a process with a time limit, and makes the report.

A stage that fails or is stopped becomes a row and does not end the others. This process does not
know torch, so that no fault of a GPU reaches it.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from bench.gpu.report import write_report
from bench.gpu.results import (
    LOG_FILE,
    LOST_CONTEXT,
    OUT,
    PROFILE_FILE,
    ROWS_FILE,
    SERVER_FILE,
    STARTED,
    TINY,
    WORK,
    described,
    is_failure,
    read_rows,
    row_line,
)
from bench.gpu.stages import MINUTES, Stage

_LOOK_S = 0.2  # between two looks at the rows of a stage that runs
_LEAST_S = 8  # a stage with less time is not started
_REPORT_S = 10  # of the whole time, for the report
_END_S = 5  # between SIGTERM and SIGKILL

Say = Callable[[str], None]


class Run:
    """A run of some stages, which ends after so many minutes at the latest."""

    def __init__(self, out: Path, *, minutes: float, tiny: bool, say: Say) -> None:
        """Make the folder `out`, or remove an earlier run's results from it.

        `say` is given the lines of progress. Raises OSError if the folder can't be written.
        """
        self._out, self._say, self._scale = out, say, minutes / MINUTES
        self._total_s, self._started = minutes * 60, time.monotonic()
        self._shown = 0  # rows for which there is a line of progress
        out.mkdir(parents=True, exist_ok=True)
        for name in (LOG_FILE, PROFILE_FILE, SERVER_FILE):
            (out / name).unlink(missing_ok=True)
        (out / ROWS_FILE).write_text("")
        self._variables = {
            OUT: str(out.resolve()),
            STARTED: str(time.time()),
            TINY: str(int(tiny)),
            "TRITON_INTERPRET": str(int(tiny)),
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "KINETO_LOG_LEVEL": "99",
            **({"OMP_NUM_THREADS": "1"} if tiny else {}),
        }

    def stages(self, stages: Sequence[Stage]) -> bool:
        """Run these stages and make the report. Returns whether every result is right."""
        work = Path(tempfile.mkdtemp(prefix="easel-bench-gpu-"))
        # Triton's cache too, so that kernels take as long to compile as on a new machine.
        self._variables |= {WORK: str(work), "TRITON_CACHE_DIR": str(work / "triton")}
        try:
            for index, stage in enumerate(stages):
                self._stage(stage, kept_s=sum(each.kept_s for each in stages[index + 1 :]))
        finally:
            shutil.rmtree(work, ignore_errors=True)
            self._say(f"the report is {write_report(self._out)}")
        failures = list(filter(is_failure, read_rows(self._out)))
        for row in failures:
            self._say(described(row))
        self._say(f"{len(failures)} failures" if failures else "no failure")
        return not failures

    def _left_s(self) -> float:
        return self._total_s - (time.monotonic() - self._started)

    def _stage(self, stage: Stage, *, kept_s: float) -> None:
        """Run a stage. The stages behind it keep `kept_s` seconds of the time in a full run."""
        room_s = self._left_s() - kept_s * self._scale - _REPORT_S
        limit_s = min(stage.limit_s * self._scale, room_s)
        if limit_s < _LEAST_S:
            self._write(stage, case="whole stage", SKIPPED="no time was left")
            return
        self._progress(f"{stage.name}: at most {limit_s:.0f} s")
        started = time.monotonic()
        with (self._out / LOG_FILE).open("a") as log:
            log.write(f"\n==== {stage.name}\n")
            log.flush()
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "bench.gpu", *stage.name.split()],
                env={**os.environ, **self._variables},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            while process.poll() is None and time.monotonic() < started + limit_s:
                self._show_rows()
                time.sleep(_LOOK_S)
            status = process.poll()
        finally:
            _end(process)
        self._show_rows()
        seconds = round(time.monotonic() - started, 1)
        if status is None:
            reason = f"stopped after {limit_s:.0f} s, its time limit"
        elif status == LOST_CONTEXT:
            reason = "the rest of the stage did not run after an error of CUDA"
        elif status < 0:
            reason = f"ended by {signal.Signals(-status).name}"
        else:
            reason = f"ended with exit status {status}"
        failed = {} if status == 0 else {"FAILED": f"{reason}; {LOG_FILE} has its last lines"}
        self._write(stage, case="whole stage", s=seconds, **failed)

    def _write(self, stage: Stage, **values: object) -> None:
        at_s = time.monotonic() - self._started
        with (self._out / ROWS_FILE).open("a") as file:
            file.write(row_line(stage.name, at_s, values))
        self._show_rows()

    def _show_rows(self) -> None:
        rows = read_rows(self._out)
        for row in rows[self._shown :]:
            self._progress(described(row))
        self._shown = len(rows)

    def _progress(self, text: str) -> None:
        passed, left = time.monotonic() - self._started, max(0.0, self._left_s())
        self._say(f"[{_clock(passed)}, at most {_clock(left)} left] {text}")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a stage and every process that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
