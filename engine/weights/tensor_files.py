"""Reads a checkpoint's safetensors files and keeps account of which tensors have been read.

Tensors go by their names in the files, after a function has given tied tensors one common name. A
tensor is mapped into memory, not copied, so it takes no memory until it is used. If the files have
several copies of a tied tensor, they are compared when the tensor is read: by then its bytes are in
memory, so each copy is read from the disk once.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.sizing.model_files import is_pointer, pointer_fault
from engine.weights.errors import UnreadableWeightsError

Progress = Callable[[int, int], None]  # bytes read so far, and bytes in total

_COMPARED = 2**22  # elements of tied tensors that are compared at once, to bound the memory


class MissingTensorError(LookupError):
    """A tensor that a weight needs is in no file. The error's text is the tensor's name."""


class _Source(NamedTuple):
    """An open file and a tensor's name in it."""

    opened: Any
    name: str

    def mapped(self) -> Tensor:
        tensor: Tensor = self.opened.get_tensor(self.name)
        return tensor


class TensorFiles:
    """All tensors of a checkpoint's files."""

    def __init__(
        self, files: list[Path], canonical: Callable[[str], str], on_progress: Progress
    ) -> None:
        """Raises UnreadableWeightsError if a file is damaged."""
        self._on_progress = on_progress
        self._total = sum(file.stat().st_size for file in files)
        self._loaded = 0
        self._sources: dict[str, _Source] = {}
        self._copies: defaultdict[str, list[_Source]] = defaultdict(list)  # of tied tensors
        for file in files:
            opened = _open(file)
            for name in opened.keys():  # noqa: SIM118  # not a dict: it can't be iterated
                source = _Source(opened, name)
                if self._sources.setdefault(canonical(name), source) is not source:
                    self._copies[canonical(name)].append(source)
        self._left = set(self._sources)

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    def take(self, name: str) -> Tensor:
        """Returns a tensor, and counts it and its copies as read.

        Raises MissingTensorError if it is in no file, and UnreadableWeightsError if a copy differs.
        """
        if name not in self._sources:
            raise MissingTensorError(name)
        source = self._sources[name]
        tensor = source.mapped()
        self._left.discard(name)
        for copy in self._copies.pop(name, ()):
            other = copy.mapped()
            if not _equal(tensor, other):
                raise UnreadableWeightsError(
                    f"{source.name} and {copy.name} differ, but they are one weight of the model "
                    "(tie_word_embeddings). What was trained or merged into one of them must be "
                    "in both"
                )
            self._count(other.nbytes)
        self._count(tensor.nbytes)
        return tensor

    def pass_over(self, is_idle: Callable[[str], bool]) -> None:
        """Count as read the tensors that are not needed, whose names `is_idle` accepts."""
        for name in sorted(filter(is_idle, self._left)):
            for source in (self._sources[name], *self._copies.pop(name, ())):
                self._count(source.mapped().nbytes)
            self._left.discard(name)

    @property
    def left(self) -> list[str]:
        """The names in the files of the tensors that have not been taken, sorted."""
        return sorted(self._sources[name].name for name in self._left)

    def _count(self, count: int) -> None:
        self._loaded += count
        self._on_progress(min(self._loaded, self._total), self._total)


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UnreadableWeightsError(f"{_fault(file)} ({error})") from error


def _fault(file: Path) -> str:
    """Returns what is wrong with a file that can't be opened, and what to do about it."""
    try:
        if is_pointer(file):
            return pointer_fault(file)
        size, announced = file.stat().st_size, _announced_bytes(file)
    except OSError:
        return f"{file} can't be read"
    if announced is not None and size < announced:
        return f"{file} is cut off: it has {size} of {announced} bytes. Download it again"
    return f"{file} is not a safetensors file, or it is damaged. Download it again"


def _announced_bytes(file: Path) -> int | None:
    """Returns the size in bytes that a file's header gives it, or None if the header is damaged."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(length) if length < file.stat().st_size else b""
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        return 8 + length + max(int(entry["data_offsets"][1]) for entry in entries.values())
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _equal(one: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors have the same values, whatever their types."""
    if one.shape != other.shape:
        return False
    one, other = one.flatten(), other.flatten()
    if one.dtype == other.dtype and torch.equal(_words(one), _words(other)):
        return True
    starts = range(0, one.numel(), _COMPARED)
    chunks = (
        (each[start : start + _COMPARED].double() for each in (one, other)) for start in starts
    )
    return all(torch.equal(*pair) for pair in chunks)


def _words(tensor: Tensor) -> Tensor:
    """Returns a tensor's bytes as the widest integers possible, which are compared fastest."""
    stored = tensor.view(torch.uint8)
    aligned = stored.nbytes % 8 == stored.storage_offset() % 8 == 0
    return stored.view(torch.int64) if aligned else stored
