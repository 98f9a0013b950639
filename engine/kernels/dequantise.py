"""Dequantisation: how a kernel turns codes into weights, and the same in plain PyTorch.

A weight is its code times the scale of its group. A group is a number of consecutive inputs of one
output. `engine/kernels/grouped_linear.py` lists the tensors of each scheme.

Letters: N outputs, K inputs, G scales a row of weights.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

Scheme = Literal["dense", "int8", "int4", "fp8", "nvfp4"]


def plain_weights(
    codes: Tensor,
    scheme: Scheme,
    scales: Tensor,
    zeros: Tensor | None = None,
    global_scale: Tensor | None = None,
) -> Tensor:
    """Returns the weights [.., N, K] float64 of codes [.., N, K], or [.., N, K/2] if packed.

    The arguments are those of `grouped_linear`. Computed in plain PyTorch.
    """
    if scheme in ("int4", "nvfp4"):
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)
    if scheme == "nvfp4":
        values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
        codes = torch.cat([values, -values])[codes.int()]
    if scheme == "int4" and zeros is None:
        codes = codes.double() - 8
    parts = codes.double().reshape(*scales.shape, -1) * scales.double()[..., None]
    if zeros is not None:
        parts = parts - zeros.double()[..., None]
    if global_scale is not None:
        parts = parts * global_scale.double()[..., None, None, None]
    return parts.flatten(-2)


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def tile_scales(  # type: ignore[no-untyped-def]  # its arguments are not Python's
    scales,
    line,
    inside,
    begin,
    columns,
    SCHEME: tl.constexpr,  # noqa: N803  # Triton's way to write constants
    GROUP: tl.constexpr,  # noqa: N803
    BLOCK_K: tl.constexpr,  # noqa: N803
    PACK: tl.constexpr,  # noqa: N803
):
    """Returns the scales (or zeros) of a tile's codes, [N, BLOCK_K / PACK] float32.

    Each scale is repeated for the codes of its group. `line` [N] are the tile's rows of `scales`
    [.., columns], `inside` [N, 1] is True where such a row exists, and `begin` is the tile's first
    input.
    """
    COUNT: tl.constexpr = BLOCK_K // GROUP if GROUP < BLOCK_K else 1  # noqa: N806
    EACH: tl.constexpr = BLOCK_K // PACK // COUNT  # noqa: N806
    column = begin // GROUP + tl.arange(0, COUNT)[None, :]
    mask = inside & (column < columns)
    scale = tl.load(scales + line[:, None] * columns + column, mask=mask, other=0)
    # The powers of two make up for those by which the results of `dequantised` and
    # `_halves_of_e4m3` are too small.
    if SCHEME == "nvfp4":
        scale = _halves_of_e4m3(scale).to(tl.float32) * 4194304.0  # 2^(14 + 8)
    elif SCHEME == "fp8":
        scale = scale.to(tl.float32) * 256.0
    else:
        scale = scale.to(tl.float32)
    wide = tl.broadcast_to(scale[:, :, None], (scale.shape[0], COUNT, EACH))
    return tl.reshape(wide, (scale.shape[0], COUNT * EACH))


@triton.jit
def _halves_of_e4m3(codes):  # type: ignore[no-untyped-def]
    """Returns 2^-8 times the values of e4m3 bytes, as float16.

    The bits are moved to where a float16 has them, because compute capability 8.0 and 8.6 have no
    instruction for the conversion. Subnormal numbers come out right too.
    """
    wide = codes.to(tl.uint16)
    return (((wide & 128) << 8) | ((wide & 127) << 7)).to(tl.float16, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def dequantised(codes, scale, zero, SCHEME: tl.constexpr, TYPE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Returns the weights of `codes`, one code a byte, in the type TYPE.

    They are multiplied by `scale`, and `zero` is subtracted, if these are given. Without the scale
    of `tile_scales`, results are 2^-8 times the weights for fp8 and 2^-14 times for nvfp4.
    """
    if SCHEME == "fp8":
        values = _halves_of_e4m3(codes)
    elif SCHEME == "nvfp4":
        # The same for e2m1, which results in 2^-14 times the value.
        wide = codes.to(tl.uint16)
        values = (((wide & 8) << 12) | ((wide & 7) << 9)).to(tl.float16, bitcast=True)
    else:
        # The code becomes the last bits of 2^23, which most GPUs do faster than a conversion.
        bits = codes.to(tl.int32)
        offset: tl.constexpr = 128.0 if SCHEME == "int8" else (0.0 if zero is not None else 8.0)
        if SCHEME == "int8":
            bits = bits ^ 128
        values = (bits | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + offset)
    if scale is not None:
        values = values.to(tl.float32) * scale
    if zero is not None:
        values = values - zero
    return values.to(TYPE)
