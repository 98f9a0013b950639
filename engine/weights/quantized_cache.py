"""A cache on disk of weights that were quantised at an earlier start, one file for each weight.

A folder belongs to one checkpoint and one choice of schemes. The checkpoint is identified by its
files' paths, sizes and modification times. Files are written to a temporary folder, which gets the
final name once it is complete. A killed start therefore leaves only a temporary folder: it is never
read, and the next start that writes removes it.

The cache is bounded: after each start, folders that were used longest ago are removed until the
others are within the limit. A folder's modification time is the time of its last use. A process
holds a lock on its folder for as long as it has the weights, and a locked folder is never removed.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine.weights.quantization import QuantizedWeight, as_scheme

logger = logging.getLogger(__name__)

_NAME = re.compile("[0-9a-f]{24}")  # of a finished folder
_VERSION = 3  # raise it when the files' layout or the results of `quantize` change


def cache_root() -> Path:
    """Returns the cache's folder below $XDG_CACHE_HOME, or below ~/.cache if that is not set."""
    configured = os.environ.get("XDG_CACHE_HOME")
    return (Path(configured) if configured else Path.home() / ".cache") / "easel" / "quantized"


class QuantizedCache:
    """The cached weights of one checkpoint, quantised in one way.

    Use it as a context manager around the loading. Weights that were written get their final
    folder at the end, unless the loading failed. After a loading that succeeded, call `release`
    when the weights are no longer used.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[Path],
        schemes: Mapping[str, str],
        *,
        most_bytes: float = math.inf,
    ) -> None:
        """`files` are the checkpoint's. `schemes` says which weights are quantised and how.

        `most_bytes` is the limit for all folders below `root` together.
        """
        stats = [(str(file.resolve()), file.stat()) for file in files]
        identity = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        key = json.dumps([_VERSION, schemes, identity], sort_keys=True)
        self._folder = root / hashlib.sha256(key.encode()).hexdigest()[:24]
        self._temporary = self._folder.with_name(f"{self._folder.name}.{os.getpid()}")
        self._writable = True
        self._most_bytes = most_bytes
        self._lock: int | None = None  # the file descriptor of the folder, on which the lock is

    def read(self, name: str, device: torch.device) -> QuantizedWeight | None:
        """Returns a cached weight, or None if there is no file for it or the file can't be read."""
        file = self._folder / f"{name}.safetensors"
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt", device=str(device)) as opened:
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
                scheme = as_scheme(opened.metadata()["scheme"])
                return QuantizedWeight.of(scheme, tensors)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            logger.warning("%s can't be read and will be written again: %s", file, error)
            return None

    def write(self, name: str, weight: QuantizedWeight) -> None:
        """Write a weight to the temporary folder.

        If that fails, for lack of space or permission, log a warning and cache nothing at all.
        """
        if not self._writable:
            return
        try:
            if not self._temporary.exists():
                _remove_leftovers(self._temporary.parent)
                self._temporary.mkdir(parents=True)
            tensors = {key: tensor.cpu().contiguous() for key, tensor in weight.tensors().items()}
            save_file(
                tensors,
                self._temporary / f"{name}.safetensors",
                metadata={"scheme": weight.scheme},
            )
        except (OSError, SafetensorError) as error:
            logger.warning("quantised weights are not cached in %s: %s", self._folder, error)
            self._writable = False
            shutil.rmtree(self._temporary, ignore_errors=True)

    def release(self) -> None:
        """Allow other processes to remove the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> None:
        self._lock = _lock(self._folder, fcntl.LOCK_SH)

    def __exit__(self, error: type[BaseException] | None, *_details: object) -> None:
        """Give the written files their final folder, or remove them if the loading failed.

        Then remove what exceeds the limit.
        """
        with contextlib.suppress(OSError):  # another start was faster, and its folder is as good
            if error is None and self._folder.exists():
                for file in self._temporary.glob("*"):  # they replace files that could not be read
                    file.replace(self._folder / file.name)
            elif error is None and self._temporary.exists():
                self._temporary.rename(self._folder)
        shutil.rmtree(self._temporary, ignore_errors=True)
        if error is not None:
            self.release()
            return
        before, self._lock = self._lock, _lock(self._folder, fcntl.LOCK_SH)
        if before is not None:
            os.close(before)
        with contextlib.suppress(OSError):
            os.utime(self._folder)
            _remove_oldest(self._folder, self._most_bytes)


def _lock(folder: Path, kind: int) -> int | None:
    """Returns a file descriptor that holds a lock of this kind on a folder until it is closed.

    Returns None if the folder does not exist, is locked already, or if its file system has no
    locks.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_oldest(kept: Path, most_bytes: float) -> None:
    """Remove folders beside `kept`, those used longest ago first, until all are within the limit.

    Folders that a process has locked stay. Raises OSError if the cache can't be listed.
    """
    folders = [each for each in kept.parent.iterdir() if _NAME.fullmatch(each.name)]
    sizes = {each: sum(file.stat().st_size for file in each.iterdir()) for each in folders}
    total = sum(sizes.values())
    for folder in sorted(folders, key=lambda each: each.stat().st_mtime_ns):
        if total <= most_bytes:
            return
        if folder != kept and _remove_unlocked(folder):
            logger.info("removed %s: its quantised weights were used longest ago", folder)
            total -= sizes[folder]


def _remove_unlocked(folder: Path) -> bool:
    """Remove a folder, unless a process has locked it. Returns whether it is removed.

    Raises OSError if it can't be renamed.
    """
    lock = _lock(folder, fcntl.LOCK_EX)
    if lock is None:
        return False
    try:
        # Renamed first, so that no start reads a folder that is half removed.
        doomed = folder.rename(folder.with_name(f"{folder.name}.{os.getpid()}"))
    finally:
        os.close(lock)
    shutil.rmtree(doomed, ignore_errors=True)
    return True


def _remove_leftovers(root: Path) -> None:
    """Remove temporary folders whose process has ended."""
    for folder in root.glob("*.*"):
        try:
            os.kill(int(folder.suffix[1:]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, PermissionError):  # no temporary folder, or another user's process
            continue
