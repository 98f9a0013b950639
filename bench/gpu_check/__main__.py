"""The command `python -m bench.gpu_check STAGE`. It runs one stage, or prints all results.

Each stage is imported when it runs, so that a missing library fails only the stages that need it.
"""

import logging
import sys

from bench.gpu_check.results import failures, print_summary


def main(stage: str, *arguments: str) -> None:
    """Run a stage. Raises SystemExit with status 1 after `summary` if a result is a failure.

    `released` takes the name of its weights' formats, and then "compiled" to compile the layers.
    """
    if stage == "summary":
        print_summary()
        raise SystemExit(1 if failures() else 0)
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("engine").setLevel(logging.INFO)
    match stage:
        case "env":
            from bench.gpu_check.machine import check_machine

            check_machine()
        case "kernels":
            from bench.gpu_check.kernels import check_kernels

            check_kernels()
        case "model":
            from bench.gpu_check.small_model import check_small_model

            check_small_model()
        case "released":
            from bench.gpu_check.released_size import check_released_size

            check_released_size(arguments[0], compiled="compiled" in arguments)
        case "server":
            from bench.gpu_check.server import check_server

            check_server()
        case _:
            raise SystemExit(
                f"unknown stage {stage!r}: allowed are env, kernels, model, released, server "
                "and summary"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
