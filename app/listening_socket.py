"""The socket on which the server listens. It leaves some descriptors to the rest of the process.

Clients may open as many connections as the process may have files. Without a reserve, a worker that
dies then cannot be replaced, and ZeroMQ even ends the process if it finds no descriptor for a
worker that connects.
"""

import errno
import os
import resource
import socket

_RESERVE = 64  # descriptors for the worker's start, for images from hosts and for files


class ListeningSocket(socket.socket):
    """A socket that accepts no connection while only the reserve is free.

    Clients then wait in the system's queue, as if all descriptors were in use.
    """

    _refused = False

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a connection. Raises OSError with EMFILE if only the reserve is free.

        asyncio pauses for a second after that error. Before Python 3.12 it first calls again, as
        often as the backlog is long, and logs each error. So the next call says that no connection
        is waiting.
        """
        full = not self._has_room()
        refused, self._refused = self._refused, full and not self._refused
        if full and refused:
            raise BlockingIOError
        if full:
            raise OSError(errno.EMFILE, "only the reserve of descriptors is free")
        return super().accept()

    def _has_room(self) -> bool:
        """Returns whether the next connection's descriptor does not belong to the reserve."""
        try:
            lowest_free = os.dup(self.fileno())
        except OSError:
            return False
        os.close(lowest_free)
        return lowest_free < most_descriptors()


def most_descriptors() -> int:
    """Returns how many descriptors the process may have open beside the reserve."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        limit = 2**31
    return limit - min(_RESERVE, limit // 2)
