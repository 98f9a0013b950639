"""Compute the size of the weights from the dimensions, by part and format.

Plain Python. All weights are counted to the byte. For quantised weights the codes and scales are
those that `engine/weights/quantization.py` makes from 16-bit weights.
"""

from dataclasses import dataclass
from typing import Literal

from engine.config import Format, Formats
from engine.sizing.chunks import VOCAB_CHUNK
from engine.sizing.dimensions import Dimensions, Tower

Part = Literal[
    "experts",
    "attention",
    "dense MLP",
    "embedding and lm_head",
    "router and norms",
    "self-conditioning",
    "vision",
    "as stored",
]

_CODE_BITS: dict[Format, int] = {"int8": 8, "fp8": 8, "int4": 4}
INT4_GROUP = 32  # weights that share one scale in int4; the other formats have one scale per row
_PAIR_DISTANCE = 32  # inputs between the two codes of a byte, if the inputs allow it
SCALE_TYPE: Literal["bfloat16"] = "bfloat16"  # of the scales of every format, by its name in torch
_SCALE_BYTES = {"bfloat16": 2}[SCALE_TYPE]


def pair_distance(inputs: int) -> int:
    """Returns how many inputs lie between the two 4-bit codes of a byte, in rows of `inputs` codes.

    A row of codes is cut into blocks of twice the distance. Byte j of a block holds code j in its
    low half, and the code behind it by the distance in its high half. So a kernel multiplies the
    low halves by consecutive inputs and the high halves by others, and need not interleave them.
    The distance is 32, or less if the inputs do not divide into blocks: then it is the largest
    power of two with which they do.
    """
    assert inputs % 2 == 0
    return min(_PAIR_DISTANCE, (inputs & -inputs) // 2)


@dataclass(frozen=True)
class Count:
    """The number of elements in one part of the weights."""

    elements: int = 0  # of matrices that can be quantised
    rows: int = 0  # of these matrices
    plain: int = 0  # elements of all other tensors

    def __add__(self, other: "Count") -> "Count":
        return Count(
            self.elements + other.elements, self.rows + other.rows, self.plain + other.plain
        )

    @property
    def total(self) -> int:
        return self.elements + self.plain

    def nbytes(self, form: Format, element_bytes: float) -> int:
        """Returns the bytes in this format. Elements not quantised take `element_bytes` each."""
        return round(self.plain * element_bytes + self._matrix_bytes(form, element_bytes))

    def _matrix_bytes(self, form: Format, element_bytes: float) -> float:
        if form == "none":
            return self.elements * element_bytes
        codes = self.elements * _CODE_BITS[form] / 8
        if form == "int4":
            return codes + self.elements / INT4_GROUP * _SCALE_BYTES
        return codes + self.rows * _SCALE_BYTES


def weight_counts(dimensions: Dimensions) -> dict[Part, Count]:
    """Returns the elements of each part of the network.

    They are counted as the engine holds them: the embedding once, and encoder and decoder as one.
    """
    d = dimensions
    hidden, layers = d.hidden_size, len(d.layers)
    dense = _matrix(2 * d.mlp_size, hidden) + _matrix(hidden, d.mlp_size)
    expert = _matrix(2 * d.expert_size, hidden) + _matrix(hidden, d.expert_size)
    attention = Count()
    norms = Count(plain=hidden)  # the last one
    for shape in d.layers:
        # Full layers have no value projection.
        heads = d.query_heads + shape.kv_heads * (1 if shape.window is None else 2)
        attention += _matrix(heads * shape.head_size, hidden)
        attention += _matrix(hidden, d.query_heads * shape.head_size)
        norms += Count(plain=2 * shape.head_size)
    # Each layer has seven norms, a router with one scale per feature and one per expert, and one
    # scale each for encoder and decoder.
    router = _matrix(d.experts, hidden) + Count(plain=hidden + d.experts)
    norms += _times(router + Count(plain=7 * hidden + 2), layers)
    return {
        "experts": _times(expert, layers * d.experts),
        "attention": attention,
        "dense MLP": _times(dense, layers),
        "embedding and lm_head": _matrix(d.vocab_size, hidden),
        "router and norms": norms,
        "self-conditioning": dense + Count(plain=hidden),
        "vision": Count() if d.tower is None else _tower(d.tower, hidden),
    }


def weight_bytes(
    dimensions: Dimensions,
    formats: Formats,
    *,
    element_bytes: float,
) -> dict[Part, int]:
    """Returns the bytes of each part on the device.

    The weights of a quantised checkpoint are one part, whose size comes from the checkpoint's
    files. It must be known (see `Dimensions.sized`).
    """
    if dimensions.quantized:
        stored = dimensions.stored
        assert stored is not None
        return {"as stored": stored.nbytes + round(stored.elements * element_bytes)}
    return {
        part: count.nbytes(part_format(part, formats), element_bytes)
        for part, count in weight_counts(dimensions).items()
    }


def part_format(part: Part, formats: Formats) -> Format:
    """Returns the format in which a part's matrices are held."""
    match part:
        case "experts":
            return formats.experts
        case "attention" | "dense MLP":
            return formats.linears
        case "as stored":
            return "none"
        case _:
            return formats.rest


def widest_elements(dimensions: Dimensions, formats: Formats) -> int:
    """Returns the elements of the largest quantised matrix that a product dequantises, or 0.

    Products dequantise the matrices of one expert at a time, and the embedding in chunks of the
    vocabulary.
    """
    d = dimensions
    widest = [0]
    if formats.experts != "none" or d.quantized:
        widest.append(2 * d.expert_size * d.hidden_size)
    if formats.linears != "none" or d.quantized:
        widest.append(2 * d.mlp_size * d.hidden_size)
        for shape in d.layers:
            heads = d.query_heads + shape.kv_heads * (1 if shape.window is None else 2)
            widest.append(heads * shape.head_size * d.hidden_size)
    if formats.rest != "none":
        tokens = min(VOCAB_CHUNK, d.vocab_size)
        widest += [2 * d.mlp_size * d.hidden_size, tokens * d.hidden_size]
        if d.tower is not None:
            inner = max(d.tower.mlp_size, d.tower.query_heads * d.tower.head_size, d.hidden_size)
            widest.append(inner * d.tower.hidden_size)
    return max(widest)


def _matrix(rows: int, columns: int) -> Count:
    return Count(rows * columns, rows)


def _times(count: Count, times: int) -> Count:
    return Count(times * count.elements, times * count.rows, times * count.plain)


def _tower(tower: Tower, text_hidden_size: int) -> Count:
    """Returns the elements of the tower and its projector.

    The patch embedding is never quantised.
    """
    size = tower.hidden_size
    heads, kv_heads = tower.query_heads * tower.head_size, tower.kv_heads * tower.head_size
    attention = _matrix(heads + 2 * kv_heads, size) + _matrix(size, heads)
    mlp = _matrix(2 * tower.mlp_size, size) + _matrix(size, tower.mlp_size)
    norms = Count(plain=4 * size + 2 * tower.head_size)
    patches = 2 * tower.positions * size + 3 * tower.patch_size**2 * size
    scales = 2 * size if tower.standardize else 0
    projector = _matrix(text_hidden_size, size)
    return _times(attention + mlp + norms, tower.layers) + projector + Count(plain=patches + scales)
