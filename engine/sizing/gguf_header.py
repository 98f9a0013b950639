"""Find a GGUF file and read its header: each tensor's name, shape, type and offset.

Plain Python. The `gguf` package's reader makes an object of every token of the vocabulary, which
takes half a minute. This reader skips the vocabulary. The format is described in ggml's
docs/gguf.md; versions 2 and 3 are supported.
"""

import mmap
import re
import struct
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from engine.sizing.model_files import ModelFiles, ModelFilesError, is_pointer, pointer_fault

_MAGIC = b"GGUF"
_ARCHITECTURE = "diffusion-gemma"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # of the data, unless the file sets another
_TEXT, _LIST = 8, 9  # kinds of values
# The other kinds, with their format characters in struct.
_NUMBERS = dict(zip([0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12], "BbHhIif?Qqd", strict=True))
# Of a file on the hub so much is read at first, and at most. The released vocabulary takes 16 MB.
_FIRST_BYTES, _MOST_BYTES = 32 * 2**20, 512 * 2**20
_LENGTH = struct.Struct("<Q")  # of a text
_ON_HUB = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)/([^/@]+\.gguf)(?:@(.+))?")


class GgufError(ValueError):
    """The file is not a GGUF file, or not one that this engine supports."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor's entry in the header."""

    name: str
    shape: tuple[int, ...]  # in torch's order
    kind: int  # the type's number in ggml
    start: int  # offset in the file, in bytes

    @property
    def elements(self) -> int:
        return prod(self.shape)


def read_tensors(file: Path) -> list[GgufTensor]:
    """Returns all tensors of the file.

    Raises GgufError if it is not a DiffusionGemma GGUF file, and OSError if it cannot be read.
    """
    if is_pointer(file):
        raise GgufError(pointer_fault(file))
    try:
        with (
            file.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _tensors(file.name, data)
    except ValueError as error:  # an empty file can't be mapped
        if isinstance(error, GgufError):
            raise
        raise GgufError(f"{file.name} is not a GGUF file: {error}") from error


def find_tensors(name: str) -> list[GgufTensor] | None:
    """Returns all tensors of the file at a path or on the hub, which is not downloaded.

    Returns None if the file is not on this machine and the hub can't be asked. Raises GgufError if
    it is not a DiffusionGemma GGUF file, and OSError if it cannot be read.
    """
    path = _file_here(name)
    if path is not None:
        return read_tensors(path)
    on_hub = _place_on_hub(name)
    if on_hub is None:
        return None
    repository, file = on_hub
    try:
        size = (repository.sizes or {}).get(file)
    except ModelFilesError:
        return None
    count = _FIRST_BYTES
    while size is not None and (data := repository.begin(file, count)) is not None:
        try:
            return _tensors(file, data)
        except GgufError:
            if count >= min(size, _MOST_BYTES):
                raise
        count *= 4  # the header may be longer
    return None


def find_gguf(name: str) -> Path:
    """Returns the file for a path or a name on the hub, which is downloaded if it is not local.

    Raises GgufError if there is no such file, and ModelFilesError if the hub can't provide it.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    on_hub = _place_on_hub(name)
    if on_hub is None:
        raise GgufError(f"gguf {name!r} is neither a file nor on Hugging Face's hub")
    repository, file = on_hub
    return repository.file(file)


def _file_here(name: str) -> Path | None:
    """Returns the local file for a path or a name on the hub, or None if it is not on this machine.

    This never downloads a file.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    on_hub = _place_on_hub(name)
    if on_hub is None:
        return None
    from huggingface_hub import try_to_load_from_cache  # imported here because it is slow to import

    repository, file = on_hub
    revision = repository.revision or None
    cached = try_to_load_from_cache(repository.model, file, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _place_on_hub(name: str) -> tuple[ModelFiles, str] | None:
    """Returns the repository and the file of a name like `owner/name/file.gguf@revision`."""
    match = _ON_HUB.fullmatch(name)
    return None if match is None else (ModelFiles(match[1], match[3] or ""), match[2])


def _tensors(name: str, data: mmap.mmap | bytes) -> list[GgufTensor]:
    """Returns the tensors of the file of this name that begins with this data."""
    try:
        architecture, tensors = _Reader(data).header()
    except (ValueError, TypeError, ArithmeticError, struct.error) as error:
        raise GgufError(f"{name} is not a GGUF file: {error}") from error
    if architecture != _ARCHITECTURE:
        raise GgufError(
            f"{name}: general.architecture is {architecture!r}; supported: {_ARCHITECTURE!r}"
        )
    return tensors


class _Reader:
    """Reads a header from its start.

    Malformed bytes raise ValueError, TypeError, ArithmeticError or struct.error.
    """

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data, self._at = data, 0

    def header(self) -> tuple[Any, list[GgufTensor]]:
        """Returns the architecture, or None if the file has none, and the tensors."""
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
        """Returns the next tensor's entry. Its `start` is relative to the start of the data."""
        name = self._text()
        sizes = [self._next("Q") for _ in range(self._next("I"))]  # innermost dimension first
        return GgufTensor(name, tuple(reversed(sizes)), self._next("I"), self._next("Q"))

    def _value(self, kind: int) -> Any:
        """Returns the next value if it is a number or a text. Skips a list and returns None."""
        if kind == _TEXT:
            return self._text()
        if kind != _LIST:
            return self._next(_form(kind))
        kind, count = self._next("I"), self._next("Q")
        if kind in (_TEXT, _LIST):
            for _ in range(count):
                self._skip_text() if kind == _TEXT else self._value(kind)
        else:
            self._at += count * struct.calcsize(_form(kind))
        return None

    def _text(self) -> str:
        size = self._next("Q")
        self._at += size
        return self._data[self._at - size : self._at].decode()

    def _skip_text(self) -> None:
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
