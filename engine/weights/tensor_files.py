"""The tensors of a checkpoint's safetensors files, each read once, none forgotten.

Names are the files' own, put through a function that gives tied tensors one name. A tensor is
mapped into memory, not copied: it costs none until it is used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

Progress = Callable[[int, int], None]  # bytes read, and bytes in all


class MissingTensorError(LookupError):
    """A tensor that a weight is made of and no file has; its text is the name."""


class TensorFiles:
    """All files of a checkpoint as one."""

    def __init__(
        self, files: list[Path], canonical: Callable[[str], str], on_progress: Progress
    ) -> None:
        self._on_progress = on_progress
        self._total = sum(file.stat().st_size for file in files)
        self._loaded = 0
        self._places: dict[str, tuple[Any, str]] = {}  # file and the name that it has there
        self._copies: list[tuple[Any, str]] = []  # of tied tensors
        for file in files:
            opened: Any = safe_open(file, framework="pt")
            for name in opened.keys():  # noqa: SIM118  # not a dict: it can't be iterated
                place = (opened, name)
                if self._places.setdefault(canonical(name), place) is not place:
                    self._copies.append(place)
        self._left = set(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def take(self, name: str) -> Tensor:
        """Raises MissingTensorError."""
        tensor = self._mapped(name)
        self._count(tensor.nbytes)
        self._left.discard(name)
        return tensor

    def pass_over(self, is_idle: Callable[[str], bool]) -> None:
        """Count as read what nobody needs: second copies, and tensors with such a name."""
        for opened, name in self._copies:
            self._count(opened.get_tensor(name).nbytes)
        self._copies.clear()
        for name in sorted(filter(is_idle, self._left)):
            self.take(name)

    @property
    def left(self) -> list[str]:
        """What nobody has taken."""
        return sorted(self._left)

    def _mapped(self, name: str) -> Tensor:
        if name not in self._places:
            raise MissingTensorError(name)
        opened, own_name = self._places[name]
        tensor: Tensor = opened.get_tensor(own_name)
        return tensor

    def _count(self, count: int) -> None:
        self._loaded += count
        self._on_progress(min(self._loaded, self._total), self._total)
