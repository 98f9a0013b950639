"""Runs one stage: `python -m bench.gpu NAME`. `easel bench gpu` starts it.

Each stage is imported when it runs, so that a missing library fails only the stages that need it.
"""

import logging
import os
import sys
from collections.abc import Callable
from functools import partial

from bench.gpu.results import TINY, guarded


def main(*words: str) -> None:
    """Run the stage whose name has these words. A failure becomes a row.

    Raises SystemExit after an error of CUDA, which the process does not survive.
    """
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("engine").setLevel(logging.INFO)
    guarded(" ".join(words), "whole stage", lambda: _stage(words)())


def _stage(words: tuple[str, ...]) -> Callable[[], None]:
    if os.environ[TINY] != "1":
        from engine.config import EngineConfig
        from engine.device import choose_device

        choose_device(EngineConfig(device="cuda"))  # raises an error that names the reason
    match words:
        case ("machine",):
            from bench.gpu.machine import check_machine

            return check_machine
        case ("kernels",):
            from bench.gpu.kernels import check_kernels

            return check_kernels
        case ("model",):
            from bench.gpu.small_model import check_small_model

            return check_small_model
        case ("released", formats):
            from bench.gpu.released_size import check_released_size

            return partial(check_released_size, formats)
        case ("server",):
            from bench.gpu.server import check_server

            return check_server
    raise ValueError(f"no stage has the name {' '.join(words)!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
