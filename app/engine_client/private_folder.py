"""A folder for this process' sockets, which is removed in the end even if the process is killed.

The process holds a lock on the folder for as long as it lives. The kernel releases the lock however
the process dies. So a folder whose lock is free belonged to a dead server, and the next server
removes it. An abstract socket would need no folder, but every user of the machine could connect to
it.
"""

import contextlib
import errno
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
        self.path, self._descriptor = _new_folder(parent)

    def renew(self) -> None:
        """Make another folder if this one has been removed. Raises OSError if that fails."""
        if _is_at(self.path, self._descriptor):
            return
        path, descriptor = _new_folder(self.path.parent)
        os.close(self._descriptor)
        self.path, self._descriptor = path, descriptor

    def remove(self) -> None:
        """Remove the folder and everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)


def _new_folder(parent: Path) -> tuple[Path, int]:
    """Returns a new folder and a descriptor that holds its lock. Raises OSError.

    `parent` is made too if it is gone.
    """
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # mode 0700
        try:
            descriptor = _locked(path)
        except OSError:
            path.rmdir()
            raise
        if descriptor is not None:
            return path, descriptor


def _locked(folder: Path) -> int | None:
    """Returns a descriptor that holds the folder's lock.

    Returns None if another process holds the lock, or if the folder is gone or another user's.
    Raises OSError if this process can't open any file.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Before it was locked, another server may have removed it as a dead server's folder.
        if _is_at(folder, descriptor):
            return descriptor
    os.close(descriptor)
    return None


def _is_at(folder: Path, descriptor: int) -> bool:
    """Returns whether this descriptor's folder is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat(follow_symlinks=False))
    except OSError:
        return False


def _remove_if_dead(folder: Path) -> None:
    descriptor = _locked(folder)
    if descriptor is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
