"""A cache on disk of weights that were quantised at an earlier start, one file for each weight.

A folder belongs to one checkpoint and one choice of schemes. The checkpoint is identified by its
files' paths, sizes and modification times. Files are written to a temporary folder, which gets the
final name once it is complete. A killed start therefore leaves only a temporary folder: it is never
read, and the next start that writes removes it.
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

_VERSION = 2  # raise it when the files' layout or the results of `quantize` change


def cache_root() -> Path:
    """Returns the cache's folder below $XDG_CACHE_HOME, or below ~/.cache if that is not set."""
    configured = os.environ.get("XDG_CACHE_HOME")
    return (Path(configured) if configured else Path.home() / ".cache") / "easel" / "quantized"


class QuantizedCache:
    """The cached weights of one checkpoint, quantised in one way.

    Use it as a context manager around the loading. Weights that were written get their final
    folder at the end, unless the loading failed.
    """

    def __init__(self, root: Path, files: Sequence[Path], schemes: Mapping[str, str]) -> None:
        """`files` are the checkpoint's. `schemes` says which weights are quantised and how."""
        stats = [(str(file.resolve()), file.stat()) for file in files]
        identity = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        key = json.dumps([_VERSION, schemes, identity], sort_keys=True)
        self._folder = root / hashlib.sha256(key.encode()).hexdigest()[:24]
        self._temporary = self._folder.with_name(f"{self._folder.name}.{os.getpid()}")
        self._writable = True

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

    def __enter__(self) -> None:
        pass

    def __exit__(self, error: type[BaseException] | None, *_details: object) -> None:
        """Give the written files their final folder, or remove them if the loading failed."""
        with contextlib.suppress(OSError):  # another start was faster, and its folder is as good
            if error is None and self._folder.exists():
                for file in self._temporary.glob("*"):  # they replace files that could not be read
                    file.replace(self._folder / file.name)
            elif error is None and self._temporary.exists():
                self._temporary.rename(self._folder)
        shutil.rmtree(self._temporary, ignore_errors=True)


def _remove_leftovers(root: Path) -> None:
    """Remove temporary folders whose process has ended."""
    for folder in root.glob("*.*"):
        try:
            os.kill(int(folder.suffix[1:]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, PermissionError):  # no temporary folder, or another user's process
            continue
