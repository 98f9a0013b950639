"""How large a GGUF file's weights are on the device, from its header alone.

Plain Python. States how `engine/weights/gguf_file.py` holds each type: codes and scales much as
they are stored, but what has one dimension and the embedding in the model's type.
"""

from dataclasses import replace
from pathlib import Path

from engine.sizing.dimensions import Dimensions, Stored
from engine.sizing.gguf_header import GgufError, file_here, read_tensors

# Types by their numbers in ggml.h.
_IN_FULL = {0: "F32", 1: "F16", 30: "BF16"}
# Bytes of an element: its code, and its part of its group's scales, and zeros where there are any.
_QUANTIZED = {
    8: ("Q8_0", 1 + 2 / 32),
    12: ("Q4_K", 1 / 2 + (2 + 2) / 32),
    14: ("Q6_K", 1 + 4 / 16),
    6: ("Q5_0", 1 + 4 / 32),
}
_EMBEDDING = "token_embd.weight"
IDLE = "rope_freqs.weight"  # not loaded: the configuration says the same


def with_gguf(dimensions: Dimensions, name: str) -> Dimensions:
    """The same with the weights of a GGUF file, a path or one on the hub; it has no vision.

    How large they are is not known before the file is here. Raises GgufError.
    """
    file = file_here(name)
    stored = None if file is None else _stored(file)
    return replace(dimensions, tower=None, quantized=True, stored=stored)


def _stored(file: Path) -> Stored:
    nbytes, elements = 0.0, 0
    for tensor in read_tensors(file):
        if tensor.name == IDLE:
            continue
        if tensor.kind not in (*_IN_FULL, *_QUANTIZED):
            known = ", ".join([*_IN_FULL.values(), *(name for name, _ in _QUANTIZED.values())])
            raise GgufError(
                f"{file.name}: {tensor.name} is stored as {_name(tensor.kind)}; supported: {known}"
            )
        whole = len(tensor.shape) == 1 or tensor.name == _EMBEDDING
        if whole or tensor.kind in _IN_FULL:
            elements += tensor.elements
        else:
            nbytes += tensor.elements * _QUANTIZED[tensor.kind][1]
    return Stored(round(nbytes), elements)


def _name(kind: int) -> str:
    from gguf import GGMLQuantizationType  # here: it brings numpy

    known = {each.value: each.name for each in GGMLQuantizationType}
    return known.get(kind, f"ggml's type {kind}")
