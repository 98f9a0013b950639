"""Compute the size of a GGUF file's weights on the device from the file's header.

Plain Python. The arithmetic follows how `engine/weights/gguf_file.py` holds the weights: codes and
scales are held almost as they are stored. The embedding and tensors with one dimension are
converted to the model's type.
"""

from collections.abc import Sequence
from dataclasses import replace

from engine.sizing.dimensions import Dimensions, Stored
from engine.sizing.gguf_header import GgufError, GgufTensor, find_tensors

# Both maps have the types' numbers in ggml.h as keys.
_IN_FULL = {0: "F32", 1: "F16", 30: "BF16"}
# The bytes per element: its code and its share of its group's scale and zero point (if any).
_QUANTIZED = {
    8: ("Q8_0", 1 + 2 / 32),
    12: ("Q4_K", 1 / 2 + (2 + 2) / 32),
    14: ("Q6_K", 1 + 4 / 16),
    6: ("Q5_0", 1 + 4 / 32),
}
_EMBEDDING = "token_embd.weight"
IDLE = "rope_freqs.weight"  # not loaded: the configuration has the same information


def with_gguf(dimensions: Dimensions, name: str) -> Dimensions:
    """Returns the dimensions for a model whose weights come from a GGUF file, without vision.

    `name` is a path or a file on the hub, of which only the header is read. The size of the weights
    stays unknown if the file is not on this machine and the hub can't be asked. Raises GgufError if
    it is not a GGUF file that can be loaded, or OSError if it cannot be read.
    """
    tensors = find_tensors(name)
    stored = None if tensors is None else _stored(name, tensors)
    return replace(dimensions, tower=None, quantized=True, stored=stored)


def _stored(name: str, tensors: Sequence[GgufTensor]) -> Stored:
    nbytes, elements = 0.0, 0
    for tensor in tensors:
        if tensor.name == IDLE:
            continue
        if tensor.kind not in (*_IN_FULL, *_QUANTIZED):
            known = ", ".join([*_IN_FULL.values(), *(name for name, _ in _QUANTIZED.values())])
            raise GgufError(
                f"{name}: {tensor.name} is stored as {_name(tensor.kind)}; supported: {known}"
            )
        converted = len(tensor.shape) == 1 or tensor.name == _EMBEDDING
        if converted or tensor.kind in _IN_FULL:
            elements += tensor.elements
        else:
            nbytes += tensor.elements * _QUANTIZED[tensor.kind][1]
    return Stored(round(nbytes), elements)


def _name(kind: int) -> str:
    from gguf import GGMLQuantizationType  # imported here because it imports numpy

    known = {each.value: each.name for each in GGMLQuantizationType}
    return known.get(kind, f"ggml type {kind}")
