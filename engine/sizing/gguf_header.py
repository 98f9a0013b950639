"""What a GGUF file of DiffusionGemma has, by its header alone: each tensor's type and place.

Plain Python. The `gguf` package's reader makes an object of every token of the vocabulary, which
takes half a minute; here they are skipped. The format is ggml's docs/gguf.md, versions 2 and 3.
"""

import mmap
import re
import struct
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

_MAGIC = b"GGUF"
_ARCHITECTURE = "diffusion-gemma"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # of the data, unless the file says otherwise
_TEXT, _LIST = 8, 9  # kinds of values
_NUMBERS = dict(zip([0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12], "BbHhIif?Qqd", strict=True))  # struct's
_LENGTH = struct.Struct("<Q")  # of a text
_ON_HUB = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)/([^/]+\.gguf)")


class GgufError(ValueError):
    """The file is no GGUF file, or not one that is read here."""


@dataclass(frozen=True)
class GgufTensor:
    """`kind` is the type's number in ggml, `start` a byte of the file, `shape` as torch has it."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


def read_tensors(file: Path) -> list[GgufTensor]:
    """Raises GgufError; OSError if the file can't be read."""
    try:
        with (
            file.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            architecture, tensors = _Reader(data).header()
    except (ValueError, TypeError, ArithmeticError, struct.error) as error:
        raise GgufError(f"{file.name} is no GGUF file: {error}") from error
    if architecture != _ARCHITECTURE:
        raise GgufError(
            f"{file.name}: general.architecture is {architecture!r}; supported: {_ARCHITECTURE!r}"
        )
    return tensors


def place_on_hub(name: str) -> tuple[str, str] | None:
    """Repository and file that `owner/name/file.gguf` names; None if it is nothing of the kind."""
    found = _ON_HUB.fullmatch(name)
    return None if found is None else (found[1], found[2])


def file_here(name: str) -> Path | None:
    """A path's file, or the hub's if it was downloaded before; None if it is not here."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    place = place_on_hub(name)
    if place is None:
        return None
    from huggingface_hub import try_to_load_from_cache  # here: slow to import, and few need it

    kept = try_to_load_from_cache(*place)
    return Path(kept) if isinstance(kept, str) else None


class _Reader:
    """Reads on from where it stands. Raises whatever wrong bytes lead to."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def header(self) -> tuple[Any, list[GgufTensor]]:
        """The architecture, None if the file does not say, and the tensors."""
        if self._data[:4] != _MAGIC:
            raise ValueError("it does not begin with 'GGUF'")
        self._at = 4
        version = self._next("I")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}; supported: 2 and 3, little-endian")
        count, fields = self._next("Q"), self._next("Q")
        values = {self._text(): self._value(self._next("I")) for _ in range(fields)}
        infos = [self._tensor() for _ in range(count)]
        alignment = int(values.get("general.alignment", _ALIGNMENT))
        data = -(-self._at // alignment) * alignment
        tensors = [replace(info, start=data + info.start) for info in infos]
        return values.get("general.architecture"), tensors

    def _tensor(self) -> GgufTensor:
        """`start` is still counted from where the data begins."""
        name = self._text()
        sizes = [self._next("Q") for _ in range(self._next("I"))]  # the innermost first
        return GgufTensor(name, tuple(reversed(sizes)), self._next("I"), self._next("Q"))

    def _value(self, kind: int) -> Any:
        """A number or a text; None in place of a list, which is passed over."""
        if kind == _TEXT:
            return self._text()
        if kind != _LIST:
            return self._next(_form(kind))
        kind, count = self._next("I"), self._next("Q")
        if kind in (_TEXT, _LIST):
            for _ in range(count):
                self._pass_over_text() if kind == _TEXT else self._value(kind)
        else:
            self._at += count * struct.calcsize(_form(kind))
        return None

    def _text(self) -> str:
        size = self._next("Q")
        self._at += size
        return self._data[self._at - size : self._at].decode()

    def _pass_over_text(self) -> None:
        self._at += _LENGTH.unpack_from(self._data, self._at)[0] + _LENGTH.size

    def _next(self, form: str) -> Any:
        form = "<" + form
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value


def _form(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"it has a value of the unknown kind {kind}")
    return _NUMBERS[kind]
