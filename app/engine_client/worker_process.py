"""The worker's process: how it is started, and how it ended."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import engine


class Death(NamedTuple):
    """The end of a worker's process: its exit code, and the reason that is known for it."""

    code: int  # negative if a signal killed it
    reason: str | None
    was_ready: bool

    def __str__(self) -> str:
        text = f"the worker ended with exit code {self.code}"
        if self.reason is not None:
            return f"{text}: {self.reason}"
        if self.code == -signal.SIGKILL:
            return f"{text}: it was killed, most likely because the machine is out of memory"
        return text


async def start_process(address: str) -> asyncio.subprocess.Process:
    """Start a worker that connects to `address`. Its stdout goes where its stderr goes: to a pipe.

    It does not share this process' stdout, whose reader may stand still. Raises OSError.
    """
    # -P: otherwise modules in the current folder would go before Python's own and the worker's.
    # The worker has its own process group, so that Ctrl-C reaches only this process, which then
    # ends the worker in order. It stays in this session, because the kernel wakes a stopped process
    # group whose parent has died only within one session.
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "engine",
        address,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        process_group=0,
        env=child_environment(),
    )


def child_environment() -> dict[str, str]:
    """Returns an environment for a child, which imports `engine` from where this process did.

    `python -m app`, run in a checkout, puts that folder first. An installed Easel is found anyway.
    """
    checkout = str(Path(engine.__file__).parents[1])
    folders = [checkout] if sys.path[0] == checkout else []
    # An empty entry, as in PYTHONPATH=:/folder, would stand for the current folder.
    folders += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}  # if empty, as if it were not set
