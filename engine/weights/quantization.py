"""Quantised weights: their representation, their quantisation and their dequantisation.

Everything that loads, stores or multiplies quantised weights uses `QuantizedWeight`. This module
knows neither files nor tensor names, and it has no matrix products.

Letters: E experts (an optional leading dimension), N output features, K input features, G groups of
a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from engine.sizing.weights import INT4_GROUP, SCALE_TYPE, pair_distance

Scheme = Literal["int8", "int4", "fp8", "nvfp4"]
FromDense = Literal["int8", "int4", "fp8"]  # the schemes that `quantize` can make
Kernel = Literal["torch", "triton"]  # the implementation of a weight's products

_SCALE_DTYPE: torch.dtype = getattr(torch, SCALE_TYPE)
_ROWS = 16384  # rows of a large matrix that are quantised together
_INT4_ZERO = 8  # the code that stands for 0
_FP8_MAX = 448.0  # the largest number of float8_e4m3fn; larger ones overflow to NaN
# A group's scale is its number of largest magnitude divided by -d, for one of these d. d = 8 uses
# all sixteen codes but clips an equally large number of the other sign. d = 7 clips nothing.
_INT4_RANGES = (8.0, 7.5, 7.0)


def as_scheme(name: str) -> Scheme:
    """Returns the scheme of this name. Raises ValueError if there is none."""
    for scheme in get_args(Scheme):
        if scheme == name:
            return cast(Scheme, scheme)
    raise ValueError(f"{name!r} is not a scheme")


class UnquantizableError(ValueError):
    """A weight cannot be held in a scheme, for example because of its shape."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight [N, K] or [E, N, K] as codes, with one scale for each group of a row.

    - int8: `codes` are int8 [..., N, K]. An element is code * scale.
    - int4: `codes` are uint8 [..., N, K / 2], two codes a byte in the layout of `pack`. An element
      is (code - 8) * scale without `zeros`, and code * scale - zero with them.
    - fp8: `codes` are float8_e4m3fn [..., N, K]. An element is code * scale.
    - nvfp4: `codes` are packed like those of int4 and hold e2m1 numbers. `scales` are float8_e4m3fn
      for groups of 16. An element is number * scale * `global_scale`.
    """

    scheme: Scheme
    codes: Tensor
    scales: Tensor  # [..., N, G]; with G = 1 the whole row has one scale
    zeros: Tensor | None = None  # [..., N, G], already scaled
    global_scale: Tensor | None = None  # [E] or [] float32
    kernel: Kernel = "torch"  # runs its products; weights derived from this one start with "torch"

    def __post_init__(self) -> None:
        """Raises UnquantizableError if the tensors' shapes do not fit each other."""
        rows, scales = self.codes.shape[:-1], self.scales.shape
        if scales[:-1] != rows or not scales[-1] or self.shape[-1] % scales[-1]:
            raise UnquantizableError(
                f"scales {tuple(scales)} do not fit a weight {tuple(self.shape)}"
            )
        if self.zeros is not None and self.zeros.shape != scales:
            raise UnquantizableError(
                f"zeros {tuple(self.zeros.shape)} do not fit scales {tuple(scales)}"
            )

    @classmethod
    def of(cls, scheme: Scheme, tensors: Mapping[str, Tensor]) -> "QuantizedWeight":
        """Returns a weight made of named tensors, as `tensors()` returns them.

        Raises KeyError if "codes" or "scales" is missing.
        """
        zeros, global_scale = tensors.get("zeros"), tensors.get("global_scale")
        return cls(scheme, tensors["codes"], tensors["scales"], zeros, global_scale)

    @property
    def shape(self) -> torch.Size:
        """The shape [E,] N, K of the dequantised weight."""
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
        """Scheme, group size and dtypes: weights of equal layout can be joined into one."""
        types = tuple((name, tensor.dtype) for name, tensor in self.tensors().items())
        return self.scheme, self.group_size, types

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors that it consists of, by name."""
        named = {
            "codes": self.codes,
            "scales": self.scales,
            "zeros": self.zeros,
            "global_scale": self.global_scale,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def copied_to(self, device: torch.device) -> "QuantizedWeight":
        """Returns a contiguous copy on `device`, as kernels need it.

        It copies even if the weight is already on `device`, because it may be a view of a file.
        """
        moved = {
            name: tensor.to(device, copy=True, memory_format=torch.contiguous_format)
            for name, tensor in self.tensors().items()
        }
        return QuantizedWeight.of(self.scheme, moved)

    def expert(self, index: int | Tensor) -> "QuantizedWeight":
        """Returns one expert [N, K] of [E, N, K], or several by a tensor of indices."""
        parts = {name: tensor[index] for name, tensor in self.tensors().items()}
        return QuantizedWeight.of(self.scheme, parts)

    def rows(self, index: slice | Tensor) -> "QuantizedWeight":
        """Returns some of the output features, given by a slice or by a tensor of indices."""
        parts = {
            name: tensor if name == "global_scale" else tensor[..., index, :]
            for name, tensor in self.tensors().items()
        }
        return QuantizedWeight.of(self.scheme, parts)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Returns the weight [..., N, K] in this type, computed in float32."""
        scales = self.scales.float()
        if self.global_scale is not None:
            scales = scales * self.global_scale[..., None, None]
        values = self._values().reshape(*scales.shape, -1) * scales[..., None]  # [..., N, G, K / G]
        if self.zeros is not None:
            values = values - self.zeros.float()[..., None]
        return values.flatten(-2).to(dtype)

    def _values(self) -> Tensor:
        """Returns the numbers [..., N, K] that the codes stand for before scaling, in float32."""
        if self.scheme in ("int8", "fp8"):
            return self.codes.float()
        codes = unpack(self.codes)
        if self.scheme == "nvfp4":
            return _e2m1(codes)
        return codes.float() - (_INT4_ZERO if self.zeros is None else 0)


@dataclass(frozen=True, eq=False)
class StackedWeight:
    """Weights that form one matrix, joined along the output features, but differ in layout."""

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
    """Quantise a weight [N, K] or [E, N, K] of any floating type, on any device.

    Returns the quantised weight on `device`. int8 and fp8 have one scale for each row, and int4 has
    one for each 32 inputs, as the smallest published formats do. Scales have the type `SCALE_TYPE`,
    and codes are chosen for the scale after its rounding to that type.

    Only one expert or some thousand rows are moved to the device at a time, so that the device
    holds no more than the result and these rows.

    Raises UnquantizableError if the rows do not divide into int4's groups.
    """
    if scheme == "int4" and weight.shape[-1] % INT4_GROUP:
        raise UnquantizableError(
            f"int4 needs a multiple of {INT4_GROUP} input features, not {weight.shape[-1]}"
        )
    whole = empty_quantized(weight.shape, scheme, device)
    if weight.ndim == 3:
        parts = ((whole.expert(index), expert) for index, expert in enumerate(weight))
    else:
        spans = (slice(start, start + _ROWS) for start in range(0, weight.shape[0], _ROWS))
        parts = ((whole.rows(span), weight[span]) for span in spans)
    for target, part in parts:
        copy_weight(target, _QUANTIZERS[scheme](part.to(device).float()))
    return whole


def empty_quantized(shape: torch.Size, scheme: FromDense, device: torch.device) -> QuantizedWeight:
    """Returns an uninitialised weight as `quantize` would make it for this shape."""
    *front, inputs = shape
    packed = 2 if scheme == "int4" else 1
    groups = inputs // INT4_GROUP if scheme == "int4" else 1
    codes = torch.empty(*front, inputs // packed, dtype=_CODES[scheme], device=device)
    scales = torch.empty(*front, groups, dtype=_SCALE_DTYPE, device=device)
    return QuantizedWeight(scheme, codes, scales)


def copy_weight(target: QuantizedWeight, weight: QuantizedWeight) -> None:
    """Copy a weight's tensors into those of `target`, usually views of a larger weight."""
    targets, tensors = target.tensors(), weight.tensors()
    assert target.scheme == weight.scheme
    assert targets.keys() == tensors.keys()
    for name, tensor in tensors.items():
        targets[name].copy_(tensor)


def stack(parts: Sequence[Tensor | QuantizedWeight]) -> Weight:
    """Join weights along the output features.

    Parts that differ in layout or in global scale become a `StackedWeight`.
    """
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
    """Returns the weights with each `StackedWeight` replaced by its parts."""
    parts: list[Tensor | QuantizedWeight] = []
    for weight in weights:
        parts += weight.parts if isinstance(weight, StackedWeight) else (weight,)
    return parts


def stack_experts(experts: Sequence[Tensor | QuantizedWeight]) -> Tensor | QuantizedWeight:
    """Stack E experts [N, K] into one weight [E, N, K].

    Raises UnquantizableError if their shapes or their layouts differ.
    """
    first = experts[0]
    if any(expert.shape != first.shape for expert in experts):
        raise UnquantizableError("the experts differ in shape")
    if all(isinstance(expert, Tensor) for expert in experts):
        return torch.stack([expert for expert in experts if isinstance(expert, Tensor)])
    quantized = [expert for expert in experts if isinstance(expert, QuantizedWeight)]
    if isinstance(first, Tensor) or len(quantized) < len(experts):
        raise UnquantizableError("some of the experts are quantised and some are not")
    if any(expert.layout != first.layout for expert in quantized):
        raise UnquantizableError("the experts are quantised in different ways")
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
    # The scale is rounded, so the largest quotient can be 127.25, which rounds to 127.
    return QuantizedWeight("int8", (weight / scales.float()).round().to(torch.int8), scales)


def _quantize_fp8(weight: Tensor) -> QuantizedWeight:
    scales = _row_scales(weight, _FP8_MAX)
    codes = (weight / scales.float()).clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)
    return QuantizedWeight("fp8", codes, scales)


def _row_scales(weight: Tensor, largest_code: float) -> Tensor:
    """Returns scales [N, 1] of the type `SCALE_TYPE` that give each row's maximum this code."""
    return _nonzero((weight.abs().amax(-1, keepdim=True) / largest_code).to(_SCALE_DTYPE))


def _quantize_int4(weight: Tensor) -> QuantizedWeight:
    """For each group choose the range of codes with the least squared error."""
    groups = weight.view(weight.shape[0], -1, INT4_GROUP)  # [N, G, 32]
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))  # [N, G, 1]
    best_error = torch.full_like(largest, torch.inf)
    best_codes, best_scales = torch.zeros_like(groups), torch.ones_like(largest)
    for divisor in _INT4_RANGES:
        scales = _nonzero((largest / -divisor).to(_SCALE_DTYPE).float())
        codes = (groups / scales).round().clamp(-_INT4_ZERO, 15 - _INT4_ZERO)
        error = (codes * scales - groups).square().sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_codes = torch.where(better, codes, best_codes)
        best_scales = torch.where(better, scales, best_scales)
    codes = (best_codes + _INT4_ZERO).to(torch.uint8).flatten(-2)
    return QuantizedWeight("int4", pack(codes), best_scales[..., 0].to(_SCALE_DTYPE))


def pack(codes: Tensor) -> Tensor:
    """Pack uint8 codes below 16, [..., K] -> [..., K / 2], as `pair_distance` describes."""
    distance = pair_distance(codes.shape[-1])
    runs: Tensor = codes.unflatten(-1, (-1, 2, distance))  # type: ignore[no-untyped-call]
    low, high = runs.unbind(-2)
    return (low | (high << 4)).flatten(-2)


def unpack(packed: Tensor) -> Tensor:
    """Undo `pack`: [..., K / 2] -> [..., K]."""
    distance = pair_distance(2 * packed.shape[-1])
    runs: Tensor = packed.unflatten(-1, (-1, distance))  # type: ignore[no-untyped-call]
    return torch.stack([runs & 0xF, runs >> 4], dim=-2).flatten(-3)


def repack(packed: Tensor) -> Tensor:
    """Change bytes that hold consecutive codes, the first one low, to the layout of `pack`."""
    return pack(torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2))


def _e2m1(codes: Tensor) -> Tensor:
    """Returns the numbers of e2m1 codes: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.

    A code has a sign bit, two bits of exponent and one of mantissa. The numbers are computed,
    because a lookup table would have to be sent to the device.
    """
    magnitude = (codes & 7).int()
    normal = torch.ldexp(1 + 0.5 * (magnitude & 1), (magnitude >> 1) - 1)
    value = torch.where(magnitude < 2, 0.5 * magnitude, normal)
    return torch.where(codes < 8, value, -value)


def _nonzero(scales: Tensor) -> Tensor:
    """Replace scales of 0 by 1: a group of zeros can have any scale."""
    return torch.where(scales == 0, 1.0, scales)


_QUANTIZERS = {"int8": _quantize_int8, "int4": _quantize_int4, "fp8": _quantize_fp8}
_CODES = {"int8": torch.int8, "int4": torch.uint8, "fp8": torch.float8_e4m3fn}
