"""Workers that do something else besides, by a module that Python imports at their start."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
TAKES_TIME = "time.sleep(0.1)"  # so that no draft is dropped for the next one
_MODULE = """
import os, sys, time
if "engine" in sys.orig_argv:
    import engine.worker
    from engine.worker import Worker
    run = Worker.run
    def run_differently(worker, works):
        for work in works:
            {fault}
        return run(worker, works)
    Worker.run = run_differently
"""


def with_changed_worker(fault: str, folder: Path) -> dict[str, str]:
    """Returns the settings of a server whose workers run `fault` for each `work` of a pass."""
    faults = folder / "faults"
    faults.mkdir()
    (faults / "sitecustomize.py").write_text(_MODULE.format(fault=fault.strip()))
    return {"PYTHONPATH": os.pathsep.join([str(faults), str(ROOT)])}
