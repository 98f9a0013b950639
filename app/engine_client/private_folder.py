"""A folder for this process' sockets, which no death leaves behind for good.

Its owner holds a lock on it as long as it lives, which the kernel takes from it however it dies:
a folder of ours that nobody holds is a dead server's, and the next one removes it. Not an abstract
socket, which every user of the machine could connect to.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "easel-ipc-"


class PrivateFolder:
    """A new folder in `parent` that only its user can enter. Removes those of the dead."""

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
        """With all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the lock, unless another process does or the folder is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # also if it is another user's
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between its making and its lock another start may have taken it for a dead one's.
        if os.path.samestat(os.fstat(descriptor), folder.stat(follow_symlinks=False)):
            return descriptor
    os.close(descriptor)
    return None


def _remove_if_dead(folder: Path) -> None:
    descriptor = _locked(folder)
    if descriptor is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
