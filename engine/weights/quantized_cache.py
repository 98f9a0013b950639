"""Weights that were quantised at an earlier start, on disk: one file each.

A folder belongs to one checkpoint, by its files' paths, sizes and times, and to what was asked of
it. It gets its name only when it is whole. What a start that was cut off leaves behind is never
read, and the next one that writes removes it.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine.weights.quantization import QuantizedWeight, as_scheme

logger = logging.getLogger(__name__)

_VERSION = 2  # of the files, and of what `quantize` makes of a weight


def cache_root() -> Path:
    """Where a person's caches belong: $XDG_CACHE_HOME, or ~/.cache."""
    configured = os.environ.get("XDG_CACHE_HOME")
    return (Path(configured) if configured else Path.home() / ".cache") / "easel" / "quantized"


class QuantizedCache:
    """One checkpoint's, quantised in one way: whole and read, or in the making and written."""

    def __init__(self, root: Path, files: Sequence[Path], asked: Mapping[str, str]) -> None:
        """`files` are the checkpoint's, `asked` is what was to be quantised and how."""
        stats = [(str(file.resolve()), file.stat()) for file in files]
        identity = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        key = json.dumps([_VERSION, asked, identity], sort_keys=True)
        self._folder = root / hashlib.sha256(key.encode()).hexdigest()[:24]
        self._making = self._folder.with_name(f"{self._folder.name}.{os.getpid()}")
        self._writable = True

    def read(self, name: str, device: torch.device) -> QuantizedWeight | None:
        """None if there is none, or none that can be read."""
        file = self._folder / f"{name}.safetensors"
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt", device=str(device)) as opened:
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
                scheme = as_scheme(opened.metadata()["scheme"])
                return QuantizedWeight.of(scheme, tensors)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            logger.warning("%s can't be read and is made again: %s", file, error)
            return None

    def write(self, name: str, weight: QuantizedWeight) -> None:
        """Where there is no room, or no right to write, the log says so and nothing is kept."""
        if not self._writable:
            return
        try:
            if not self._making.exists():
                _remove_leftovers(self._making.parent)
                self._making.mkdir(parents=True)
            tensors = {key: tensor.cpu().contiguous() for key, tensor in weight.tensors().items()}
            save_file(
                tensors,
                self._making / f"{name}.safetensors",
                metadata={"scheme": weight.scheme},
            )
        except (OSError, SafetensorError) as error:
            logger.warning("quantised weights are not kept in %s: %s", self._folder, error)
            self._writable = False
            shutil.rmtree(self._making, ignore_errors=True)

    def __enter__(self) -> None:
        pass

    def __exit__(self, error: type[BaseException] | None, *_details: object) -> None:
        """What was written becomes what is read; if the loading failed, nothing does."""
        with contextlib.suppress(OSError):  # another start was faster: its folder is as good
            if error is None and self._folder.exists():
                for file in self._making.glob("*"):  # those that could not be read
                    file.replace(self._folder / file.name)
            elif error is None and self._making.exists():
                self._making.rename(self._folder)
        shutil.rmtree(self._making, ignore_errors=True)


def _remove_leftovers(root: Path) -> None:
    """Folders in the making whose process is gone."""
    for folder in root.glob("*.*"):
        try:
            os.kill(int(folder.suffix[1:]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, PermissionError):  # none of ours; or it lives, as someone else's
            continue
