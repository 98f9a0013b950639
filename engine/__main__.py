"""`python -m engine ADDRESS` starts a worker. The front end runs it, and it can be run by hand.

ADDRESS is a ZeroMQ endpoint that the other side has already bound.

The worker reads one line of JSON from stdin: its `EngineConfig` (`{}` for the defaults). The parent
process keeps stdin open for as long as it lives. When stdin ends, the worker ends at once, even
while it is loading, so that an orphaned worker never holds the GPU.
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

_FAILED, _CANNOT_START = 1, 3

logger = logging.getLogger("engine")  # this file runs as __main__


def main() -> int:
    """Run until stdin ends. Returns an exit code only if the worker does not start or fails."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    address = sys.argv[1]
    line = sys.stdin.readline()
    if not line:  # the parent died before it sent the configuration
        _remove_socket(address)
        return 0
    try:
        config = EngineConfig.model_validate_json(line)
    except ValidationError as error:
        print(f"easel worker: bad configuration on stdin: {error}", file=sys.stderr)
        return 2
    if not sys.stdin.isatty():
        # A service manager sends SIGTERM to all processes of a service. The worker ignores it: the
        # front end ends the worker after the running answers. If the front end dies while the
        # worker is stopped, the worker gets SIGHUP and SIGCONT: it continues and sees that its
        # stdin has ended.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_stdin, args=(address,), daemon=True).start()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("engine").setLevel(logging.INFO)  # shows the plan and the chosen kernels
    # The front end shows the last line of the level CRITICAL as the reason for the worker's end.
    try:
        return _serve(address, config)
    except Exception as error:
        logger.critical("%s: %s", type(error).__name__, error, exc_info=True)
        return _FAILED


def _serve(address: str, config: EngineConfig) -> int:
    # OpenMP reads this when torch is imported. By default its threads spin while they wait for
    # each other. That is very slow when another process uses a core: with two threads on two cores
    # beside one busy process, the demo model's first block took 24 s instead of 0.28 s.
    # `choose_threads` lists what sleeping threads cost.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Imported here because torch takes seconds to import, and the thread that watches stdin must
    # already be running.
    from engine.worker import REFUSALS, serve

    try:
        serve(address, config)
    except REFUSALS as error:
        logger.critical("%s", error)
        return _CANNOT_START


def _end_with_stdin(address: str) -> None:
    while sys.stdin.read(1):
        pass
    _remove_socket(address)
    os._exit(0)


def _remove_socket(address: str) -> None:
    """Remove the front end's socket, which the front end cannot do itself if it was killed."""
    path = Path(address.removeprefix("ipc://"))
    if path.is_socket():
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder may be shared and hold other files
            path.parent.rmdir()


if __name__ == "__main__":
    sys.exit(main())
