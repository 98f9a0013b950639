"""A server that a command starts for itself, and that ends with it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from app.settings import PREFIX

_LISTENS = re.compile(r"Easel listens on (http://\S+)/v1")


class ServerNotStarted(RuntimeError):
    """The server did not start. The message has its exit code."""


@contextmanager
def own_server(options: Sequence[str], log: TextIO) -> Iterator[str]:
    """Yields the address of a server that is started with these options of `easel serve`.

    Its log goes to `log` until it listens. The server drops further lines once the pipe is full.
    Raises ServerNotStarted if it does not start.
    """
    # Keys of the environment are for other servers. A start with an empty key has none.
    keys = (f"{PREFIX}API_KEY", f"{PREFIX}API_KEY_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in keys}
    own = ["--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen(
        [sys.executable, "-m", "app", "serve", *options, *own],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield _address(server, log)
    finally:
        server.terminate()
        server.communicate()


def _address(server: "subprocess.Popen[str]", log: TextIO) -> str:
    """Returns the server's address once its model is loaded."""
    assert server.stderr is not None
    for line in server.stderr:
        if listens := _LISTENS.search(line):
            return listens[1]
        log.write(line)
    raise ServerNotStarted(f"the server does not start; its exit code is {server.wait()}")
