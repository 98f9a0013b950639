"""Weights in few bits: their one representation, what they stand for, how they are made from more.

Everything that loads, stores or multiplies quantised weights meets in `QuantizedWeight`. Knows
neither files nor names, and no product but what a weight stands for.

Letters: E experts (optional, in front), N output features, K input features, G groups of a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from engine.sizing.weights import INT4_GROUP

Scheme = Literal["int8", "int4", "fp8", "nvfp4"]
FromDense = Literal["int8", "int4", "fp8"]  # what `quantize` makes
Kernel = Literal["torch", "triton"]  # whose a product is

_ROWS = 16384  # of a large matrix that are quantised together
_INT4_ZERO = 8  # the code that is 0
_FP8_MOST = 448.0  # of float8_e4m3fn, which overflows to NaN
# By what a group's largest number, with its sign, is divided for the scale. 8 uses all sixteen
# codes but cuts an equally large number of the other sign; 7 cuts nothing.
_INT4_RANGES = (8.0, 7.5, 7.0)


def as_scheme(name: str) -> Scheme:
    """A scheme by its name, whose type was lost on the way."""
    for scheme in get_args(Scheme):
        if scheme == name:
            return cast(Scheme, scheme)
    raise ValueError(f"{name!r} is no scheme")


class UnquantizableError(ValueError):
    """A weight's shape has no place in the scheme."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight [N, K] or [E, N, K]: (code - what stands for zero) * scale, a scale for each group.

    - int8: codes int8 [..., N, K].
    - int4: codes uint8 [..., N, K / 2], even k in the low half. Without `zeros` a code less 8;
      with them code * scale - zero.
    - fp8: codes float8_e4m3fn [..., N, K].
    - nvfp4: codes as int4's, e2m1; scales float8_e4m3fn for groups of 16, times `global_scale`.
    """

    scheme: Scheme
    codes: Tensor
    scales: Tensor  # [..., N, G]; G = 1 is one for the row
    zeros: Tensor | None = None  # [..., N, G], scaled already
    global_scale: Tensor | None = None  # [E] or [] float32
    kernel: Kernel = "torch"  # whose its products are; what is made of it begins with PyTorch's

    def __post_init__(self) -> None:
        """Raises UnquantizableError if the parts do not fit each other."""
        rows, scales = self.codes.shape[:-1], self.scales.shape
        if scales[:-1] != rows or self.shape[-1] % scales[-1]:
            raise UnquantizableError(
                f"scales {tuple(scales)} do not fit a weight {tuple(self.shape)}"
            )
        if self.zeros is not None and self.zeros.shape != scales:
            raise UnquantizableError(
                f"zeros {tuple(self.zeros.shape)} do not fit scales {tuple(scales)}"
            )

    @classmethod
    def of(cls, scheme: Scheme, tensors: Mapping[str, Tensor]) -> "QuantizedWeight":
        """From what `tensors` gives. Raises KeyError if codes or scales are not among them."""
        zeros, global_scale = tensors.get("zeros"), tensors.get("global_scale")
        return cls(scheme, tensors["codes"], tensors["scales"], zeros, global_scale)

    @property
    def shape(self) -> torch.Size:
        """[E,] N, K of the weight that it stands for."""
        packed = 2 if self.scheme in ("int4", "nvfp4") else 1
        return torch.Size([*self.codes.shape[:-1], self.codes.shape[-1] * packed])

    @property
    def group_size(self) -> int:
        return self.shape[-1] // self.scales.shape[-1]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def layout(self) -> tuple[object, ...]:
        """Equal for weights that can be one: scheme, size of groups, types."""
        types = tuple((name, tensor.dtype) for name, tensor in self.tensors().items())
        return self.scheme, self.group_size, types

    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, by name."""
        named = {
            "codes": self.codes,
            "scales": self.scales,
            "zeros": self.zeros,
            "global_scale": self.global_scale,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def copied_to(self, device: torch.device) -> "QuantizedWeight":
        """Also if it is there already: it may be a view of a file. Contiguous, for the kernels."""
        moved = {
            name: tensor.to(device, copy=True, memory_format=torch.contiguous_format)
            for name, tensor in self.tensors().items()
        }
        return QuantizedWeight.of(self.scheme, moved)

    def expert(self, index: int | Tensor) -> "QuantizedWeight":
        """One of [E, N, K]: [N, K]; or several by their numbers."""
        parts = {name: tensor[index] for name, tensor in self.tensors().items()}
        return QuantizedWeight.of(self.scheme, parts)

    def rows(self, place: slice | Tensor) -> "QuantizedWeight":
        """Some of the output features, neighbours or by their numbers."""
        parts = {
            name: tensor if name == "global_scale" else tensor[..., place, :]
            for name, tensor in self.tensors().items()
        }
        return QuantizedWeight.of(self.scheme, parts)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """[..., N, K], computed in float32."""
        scales = self.scales.float()
        if self.global_scale is not None:
            scales = scales * self.global_scale[..., None, None]
        values = self._values().reshape(*scales.shape, -1) * scales[..., None]  # [..., N, G, K / G]
        if self.zeros is not None:
            values = values - self.zeros.float()[..., None]
        return values.flatten(-2).to(dtype)

    def _values(self) -> Tensor:
        """What the codes count, [..., N, K] float32."""
        if self.scheme in ("int8", "fp8"):
            return self.codes.float()
        codes = unpack(self.codes)
        if self.scheme == "nvfp4":
            return _e2m1(codes)
        return codes.float() - (_INT4_ZERO if self.zeros is None else 0)


@dataclass(frozen=True, eq=False)
class StackedWeight:
    """Weights whose output features stand one behind another, where they are quantised unlike."""

    parts: tuple[Tensor | QuantizedWeight, ...]

    @property
    def shape(self) -> torch.Size:
        *front, _rows, inputs = self.parts[0].shape
        return torch.Size([*front, sum(part.shape[-2] for part in self.parts), inputs])

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


Weight = Tensor | QuantizedWeight | StackedWeight


def quantize(weight: Tensor, scheme: FromDense, device: torch.device) -> QuantizedWeight:
    """[N, K] or [E, N, K] of any floating type, wherever it is -> the same in few bits on `device`.

    int8 and fp8 have a bfloat16 scale for each row, int4 one for each 32 of it, as in the smallest
    of the published formats: codes are chosen for the scale as it is held. An expert at a time goes
    to the device, or some thousand rows, so that there is never more than the result and those.
    Raises UnquantizableError.
    """
    if scheme == "int4" and weight.shape[-1] % INT4_GROUP:
        raise UnquantizableError(
            f"int4 takes rows of a multiple of {INT4_GROUP}, not of {weight.shape[-1]}"
        )
    whole = empty_quantized(weight.shape, scheme, device)
    if weight.ndim == 3:
        parts = ((whole.expert(index), expert) for index, expert in enumerate(weight))
    else:
        places = (slice(start, start + _ROWS) for start in range(0, weight.shape[0], _ROWS))
        parts = ((whole.rows(place), weight[place]) for place in places)
    for place, part in parts:
        copy_weight(place, _QUANTIZERS[scheme](part.to(device).float()))
    return whole


def empty_quantized(shape: torch.Size, scheme: FromDense, device: torch.device) -> QuantizedWeight:
    """Room for what `quantize` makes of a weight of this shape."""
    *front, inputs = shape
    packed = 2 if scheme == "int4" else 1
    groups = inputs // INT4_GROUP if scheme == "int4" else 1
    codes = torch.empty(*front, inputs // packed, dtype=_CODES[scheme], device=device)
    scales = torch.empty(*front, groups, dtype=torch.bfloat16, device=device)
    return QuantizedWeight(scheme, codes, scales)


def copy_weight(place: QuantizedWeight, weight: QuantizedWeight) -> None:
    """Fill views into a larger weight with a smaller one."""
    filled, given = place.tensors(), weight.tensors()
    assert place.scheme == weight.scheme
    assert filled.keys() == given.keys()
    for name, tensor in given.items():
        filled[name].copy_(tensor)


def stack(parts: Sequence[Tensor | QuantizedWeight]) -> Weight:
    """Output features one behind another: one weight if they are quantised alike."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if all(isinstance(part, Tensor) for part in parts):
        return torch.cat([part for part in parts if isinstance(part, Tensor)], dim=-2)
    quantized = [part for part in parts if isinstance(part, QuantizedWeight)]
    if isinstance(first, Tensor) or len(quantized) < len(parts):
        return StackedWeight(tuple(parts))
    if not all(_alike(first, part) for part in quantized):
        return StackedWeight(tuple(parts))
    joined = {
        name: tensor
        if name == "global_scale"
        else torch.cat([part.tensors()[name] for part in quantized], dim=-2)
        for name, tensor in first.tensors().items()
    }
    return QuantizedWeight.of(first.scheme, joined)


def flattened(weights: Sequence[Weight]) -> list[Tensor | QuantizedWeight]:
    """What stacks are made of in place of them."""
    parts: list[Tensor | QuantizedWeight] = []
    for weight in weights:
        parts += weight.parts if isinstance(weight, StackedWeight) else (weight,)
    return parts


def stack_experts(experts: Sequence[Tensor | QuantizedWeight]) -> Tensor | QuantizedWeight:
    """[N, K] each, all quantised alike -> [E, N, K]. Raises UnquantizableError."""
    first = experts[0]
    if any(expert.shape != first.shape for expert in experts):
        raise UnquantizableError("the experts are not of one shape")
    if all(isinstance(expert, Tensor) for expert in experts):
        return torch.stack([expert for expert in experts if isinstance(expert, Tensor)])
    quantized = [expert for expert in experts if isinstance(expert, QuantizedWeight)]
    if isinstance(first, Tensor) or len(quantized) < len(experts):
        raise UnquantizableError("some of the experts are quantised and some are not")
    if any(expert.layout != first.layout for expert in quantized):
        raise UnquantizableError("the experts are not quantised alike")
    joined = {
        name: torch.stack([expert.tensors()[name] for expert in quantized])
        for name in first.tensors()
    }
    return QuantizedWeight.of(first.scheme, joined)


def _alike(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    if one.layout != other.layout:
        return False
    if one.global_scale is None or other.global_scale is None:
        return True
    return torch.equal(one.global_scale, other.global_scale)


def _quantize_int8(weight: Tensor) -> QuantizedWeight:
    scales = _row_scales(weight, 127.0)
    # Rounding a scale makes the largest code 127.25 at most, which is 127.
    return QuantizedWeight("int8", (weight / scales.float()).round().to(torch.int8), scales)


def _quantize_fp8(weight: Tensor) -> QuantizedWeight:
    scales = _row_scales(weight, _FP8_MOST)
    codes = (weight / scales.float()).clamp(-_FP8_MOST, _FP8_MOST).to(torch.float8_e4m3fn)
    return QuantizedWeight("fp8", codes, scales)


def _row_scales(weight: Tensor, most: float) -> Tensor:
    """With which the largest number of each row has this code: [N, 1] bfloat16."""
    return _nonzero((weight.abs().amax(-1, keepdim=True) / most).bfloat16())


def _quantize_int4(weight: Tensor) -> QuantizedWeight:
    """Of each group the range with the least squared error."""
    groups = weight.view(weight.shape[0], -1, INT4_GROUP)  # [N, G, 32]
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))  # [N, G, 1]
    best_error = torch.full_like(largest, torch.inf)
    best_codes, best_scales = torch.zeros_like(groups), torch.ones_like(largest)
    for divisor in _INT4_RANGES:
        scales = _nonzero((largest / -divisor).bfloat16().float())
        codes = (groups / scales).round().clamp(-_INT4_ZERO, 15 - _INT4_ZERO)
        error = (codes * scales - groups).square().sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_codes = torch.where(better, codes, best_codes)
        best_scales = torch.where(better, scales, best_scales)
    codes = (best_codes + _INT4_ZERO).to(torch.uint8).flatten(-2)
    return QuantizedWeight("int4", pack(codes), best_scales[..., 0].bfloat16())


def pack(codes: Tensor) -> Tensor:
    """uint8 codes below 16, [..., K] -> [..., K / 2], even k in the low half."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """The reverse, [..., K / 2] -> [..., K]."""
    return torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2)


def _e2m1(codes: Tensor) -> Tensor:
    """Sign, two bits of exponent, one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.

    Computed, not looked up: a table would have to be sent to the device.
    """
    magnitude = (codes & 7).int()
    normal = torch.ldexp(1 + 0.5 * (magnitude & 1), (magnitude >> 1) - 1)
    value = torch.where(magnitude < 2, 0.5 * magnitude, normal)
    return torch.where(codes < 8, value, -value)


def _nonzero(scales: Tensor) -> Tensor:
    """Of what is all zeros any scale will do."""
    return torch.where(scales == 0, 1.0, scales)


_QUANTIZERS = {"int8": _quantize_int8, "int4": _quantize_int4, "fp8": _quantize_fp8}
_CODES = {"int8": torch.int8, "int4": torch.uint8, "fp8": torch.float8_e4m3fn}
