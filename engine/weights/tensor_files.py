"""Reads a checkpoint's safetensors files and keeps account of which tensors have been read.

Tensors go by their names in the files, after a function has given tied tensors one common name. A
tensor is mapped into memory, not copied, so it takes no memory until it is used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

Progress = Callable[[int, int], None]  # bytes read so far, and bytes in total


class MissingTensorError(LookupError):
    """A tensor that a weight needs is in no file. The error's text is the tensor's name."""


class TensorFiles:
    """All tensors of a checkpoint's files."""

    def __init__(
        self, files: list[Path], canonical: Callable[[str], str], on_progress: Progress
    ) -> None:
        self._on_progress = on_progress
        self._total = sum(file.stat().st_size for file in files)
        self._loaded = 0
        self._sources: dict[str, tuple[Any, str]] = {}  # the open file and the tensor's name in it
        self._copies: list[tuple[Any, str]] = []  # the second and later copies of tied tensors
        for file in files:
            opened: Any = safe_open(file, framework="pt")
            for name in opened.keys():  # noqa: SIM118  # not a dict: it can't be iterated
                source = (opened, name)
                if self._sources.setdefault(canonical(name), source) is not source:
                    self._copies.append(source)
        self._left = set(self._sources)

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    def take(self, name: str) -> Tensor:
        """Returns a tensor and counts it as read. Raises MissingTensorError if it is in no file."""
        tensor = self._mapped(name)
        self._count(tensor.nbytes)
        self._left.discard(name)
        return tensor

    def pass_over(self, is_idle: Callable[[str], bool]) -> None:
        """Count as read what is not needed: copies of tied tensors and names `is_idle` accepts."""
        for opened, name in self._copies:
            self._count(opened.get_tensor(name).nbytes)
        self._copies.clear()
        for name in sorted(filter(is_idle, self._left)):
            self.take(name)

    @property
    def left(self) -> list[str]:
        """The names of the tensors that have not been taken, sorted."""
        return sorted(self._left)

    def _mapped(self, name: str) -> Tensor:
        if name not in self._sources:
            raise MissingTensorError(name)
        opened, own_name = self._sources[name]
        tensor: Tensor = opened.get_tensor(own_name)
        return tensor

    def _count(self, count: int) -> None:
        self._loaded += count
        self._on_progress(min(self._loaded, self._total), self._total)
