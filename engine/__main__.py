"""`python -m engine ADDRESS`: start a worker, as the front end does or by hand.

One line of JSON on stdin is its `EngineConfig` (`{}` for the defaults). Stdin then stays open as
long as whoever started the worker lives: its end ends the worker at once, even while it loads,
so that no orphan holds the GPU. ADDRESS is a ZeroMQ endpoint that the other side has bound.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from pydantic import ValidationError

from engine.config import EngineConfig

_CANNOT_START = 3


def main() -> int:
    """Run until stdin ends. Gives an exit code only if the worker can't start."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    address = sys.argv[1]
    line = sys.stdin.readline()
    if not line:  # killed before it could say anything
        _remove_socket(address)
        return 0
    try:
        config = EngineConfig.model_validate_json(line)
    except ValidationError as error:
        print(f"easel worker: bad configuration on stdin: {error}", file=sys.stderr)
        return 2
    if not sys.stdin.isatty():
        # A service manager's SIGTERM reaches all of its processes; the front end decides when its
        # worker ends, after the running answers have. SIGHUP comes to a stopped worker, with a
        # SIGCONT, when the front end is gone: it goes on, and sees the end of its stdin.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_stdin, args=(address,), daemon=True).start()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("engine").setLevel(logging.INFO)  # which kernels were chosen
    return _serve(address, config)


def _serve(address: str, config: EngineConfig) -> int:
    # OpenMP reads this when torch is imported. By default its threads spin while they wait for
    # each other, which is ruinous as soon as anything else uses a core: the demo model's first
    # block took 24 s instead of 0.28 s beside one busy process (two threads on two cores). See
    # `choose_threads` for what sleeping costs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Imported only now: torch takes seconds, during which the end of stdin must be heard.
    from engine.denoise.sampler import UnsupportedSamplerError
    from engine.device import DeviceError
    from engine.model.checkpoint import CheckpointError
    from engine.model.diffusion_gemma import UnsupportedModelError
    from engine.sizing.plan import DoesNotFitError
    from engine.worker import serve

    try:
        serve(address, config)
    except (
        CheckpointError,
        DeviceError,
        DoesNotFitError,
        UnsupportedModelError,
        UnsupportedSamplerError,
    ) as error:
        print(f"easel worker: {error}", file=sys.stderr)
    return _CANNOT_START


def _end_with_stdin(address: str) -> None:
    while sys.stdin.read(1):
        pass
    _remove_socket(address)
    os._exit(0)


def _remove_socket(address: str) -> None:
    """The front end made it, which can no longer remove it if it was killed."""
    path = Path(address.removeprefix("ipc://"))
    if path.is_socket():
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # unless it is the private folder that it makes
            path.parent.rmdir()


if __name__ == "__main__":
    sys.exit(main())
