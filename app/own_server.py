"""A server that a command starts for itself, and that ends with it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread
from typing import IO, TextIO

from app.settings import PREFIX

_LISTENS = re.compile(r"Easel listens on (http://\S+)/v1")


class ServerNotStarted(RuntimeError):
    """The server did not start. The message has its exit code."""


@contextmanager
def own_server(options: Sequence[str], log: TextIO) -> Iterator[str]:
    """Yields the address of a server that is started with these options of `easel serve`.

    Its log goes to `log` until it listens. Raises ServerNotStarted if it does not start.
    """
    # Keys of the environment are for other servers. A start with an empty key has none.
    keys = (f"{PREFIX}API_KEY", f"{PREFIX}API_KEY_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in keys}
    command = [sys.executable, "-m", "app", "serve", *options, "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        address = Future[str | None]()
        reader = Thread(target=_read, args=(server.stderr, log, address))
        reader.start()
        try:
            if (listens_at := address.result()) is None:
                code = server.wait()
                raise ServerNotStarted(f"the server does not start; its exit code is {code}")
            yield listens_at
        finally:
            server.terminate()
            reader.join()


def _read(lines: IO[str], log: TextIO, address: Future[str | None]) -> None:
    """Read a server's log to its end: a server stops where nobody reads its log.

    Sets the address once the server listens, or None if it ends before that.
    """
    for line in lines:
        if address.done():
            continue
        if listens := _LISTENS.search(line):
            address.set_result(listens[1])
        else:
            log.write(line)
    if not address.done():
        address.set_result(None)
