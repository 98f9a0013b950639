"""A folder for this process' sockets, which is removed in the end even if the process is killed.

The process holds a lock on the folder for as long as it lives. The kernel releases the lock however
the process dies. So a folder whose lock is free belonged to a dead server, and the next server
removes it. An abstract socket would need no folder, but every user of the machine could connect to
it.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "easel-ipc-"


class PrivateFolder:
    """A new folder in `parent` that only its user can enter.

    Creating it removes the folders of dead servers.
    """

    def __init__(self, parent: Path) -> None:
        for each in parent.glob(f"{PREFIX}*"):
            _remove_if_dead(each)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # mode 0700
            descriptor = _locked(self.path)
            if descriptor is not None:
                self._descriptor = descriptor
                return

    def remove(self) -> None:
        """Remove the folder and everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)


def _locked(folder: Path) -> int | None:
    """Returns a descriptor that holds the folder's lock.

    Returns None if another process holds the lock or the folder is gone.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # raised for another user's folder too
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Before it was locked, another server may have removed it as a dead server's folder.
        if os.path.samestat(os.fstat(descriptor), folder.stat(follow_symlinks=False)):
            return descriptor
    os.close(descriptor)
    return None


def _remove_if_dead(folder: Path) -> None:
    descriptor = _locked(folder)
    if descriptor is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
