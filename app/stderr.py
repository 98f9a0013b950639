"""A stderr that neither blocks nor fails, whatever happens to the place where the log goes.

A disk may be full, a terminal closed or held with Ctrl-S, and the reader of a pipe may have ended
or stand still. Serving must depend on none of this. So everything that the process writes to
`sys.stderr` is taken at once, and one thread hands it to the system. It waits for a place that
takes nothing. Text that does not fit the bound meanwhile, or that the system refuses, is lost. The
log says how many lines were lost as soon as lines can be written again.
"""

import io
import logging
import os
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

STDERR = 2  # the descriptor
_MOST_BYTES = 2**20  # that may wait
_LAST_WORDS_S = 1.0  # for what still waits when the process ends


class UnblockedFile(io.TextIOBase):
    """A text file that takes every write at once. A thread writes the text to `descriptor`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._changed = threading.Condition()  # holds an RLock: a signal's handler may write too
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0  # including what the thread is writing
        self._lost_lines = 0
        # A daemon, because it may wait for ever for a place that takes nothing.
        threading.Thread(target=self._write_on, name="stderr", daemon=True).start()

    def write(self, text: str, /) -> int:
        """Take the text, or count it as lost if too much is waiting."""
        data = text.encode(errors="backslashreplace")
        with self._changed:
            if self._waiting_bytes + len(data) > _MOST_BYTES:
                self._lost_lines += data.count(b"\n")
            else:
                self._waiting.append(data)
                self._waiting_bytes += len(data)
                self._changed.notify_all()
        return len(text)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def finish(self, seconds: float) -> None:
        """Wait until everything is written, but no longer than this."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting_bytes, seconds)

    def _write_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                data = b"".join(self._waiting)
                self._waiting.clear()
            unwritten = self._hand_over(data)
            with self._changed:
                self._waiting_bytes -= len(data)
                self._lost_lines += unwritten.count(b"\n")
                lost = 0
                # Reported when nothing waits, so that a slow place does not get a line each time.
                if not unwritten and not self._waiting:
                    lost, self._lost_lines = self._lost_lines, 0
                self._changed.notify_all()
            if lost:
                logger.warning("%d lines of the log are lost: stderr could not be written", lost)

    def _hand_over(self, data: bytes) -> bytes:
        """Write to the descriptor, however long it takes. Returns what the system refused."""
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another process has made the shared descriptor non-blocking
                select.select([], [self._descriptor], [])
            except OSError:
                break
        return data


@contextmanager
def unblocked_stderr() -> Iterator[None]:
    """Make `sys.stderr` a file that neither blocks nor fails, until the block ends."""
    before = sys.stderr
    file = UnblockedFile(STDERR)
    sys.stderr = file
    try:
        yield
    finally:
        file.finish(_LAST_WORDS_S)
        sys.stderr = before
