"""Dequantisation: how a kernel turns codes into weights, and the same in plain PyTorch.

A weight is its code times the scale of its group. A group is a number of consecutive inputs of one
output. `engine/kernels/grouped_linear.py` lists the tensors of each scheme.

There are two forms, which the tests compare. The PTX form makes two bfloat16 numbers with each
instruction and needs compute capability 8.9, the first one that converts FP8. The plain form runs
everywhere, and Triton's interpreter runs it too. It takes about twice as many instructions.

Letters: N outputs, K inputs, G scales a row of weights.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.sizing.weights import pair_distance

Scheme = Literal["dense", "int8", "int4", "fp8", "nvfp4"]

# In all of these, an operand of 32 bits holds four codes or two bfloat16 numbers.
#
# A code's byte becomes the low byte of a bfloat16 whose high byte is 0x43, which has seven bits of
# mantissa at 128. So its low seven bits give 128 + b. The eighth bit would be one of the exponent:
# it is cut out and subtracted, as 128 or 256.
_INT8 = """
{
.reg .b32 a, b, c, d, one;
mov.b32 one, 0x3f803f80;
prmt.b32 a, $2, 0x43434343, 0x4140;
prmt.b32 b, $2, 0x43434343, 0x4342;
lop3.b32 c, a, 0xff80ff80, 0x80008000, 0x6a;
lop3.b32 d, b, 0xff80ff80, 0x80008000, 0x6a;
and.b32 a, a, 0xff7fff7f;
and.b32 b, b, 0xff7fff7f;
fma.rn.bf16x2 $0, a, one, c;
fma.rn.bf16x2 $1, b, one, d;
}
"""
_FP8 = """
{
.reg .b16 a, b, c, d;
.reg .b32 x, y;
.reg .f32 e, f, g, h;
mov.b32 {a, b}, $2;
cvt.rn.f16x2.e4m3x2 x, a;
cvt.rn.f16x2.e4m3x2 y, b;
mov.b32 {a, b}, x;
mov.b32 {c, d}, y;
cvt.f32.f16 e, a;
cvt.f32.f16 f, b;
cvt.f32.f16 g, c;
cvt.f32.f16 h, d;
cvt.rn.bf16x2.f32 $0, f, e;
cvt.rn.bf16x2.f32 $1, h, g;
}
"""
# The low halves of four bytes, then the high ones. They become 128 + code like those of int8, and
# 136 is subtracted, or 128 if there are zeros.
_INT4 = """
{
.reg .b32 a, b, c, d, h, one, less;
mov.b32 one, 0x3f803f80;
mov.b32 less, LESS;
prmt.b32 a, $4, 0x43434343, 0x4140;
prmt.b32 b, $4, 0x43434343, 0x4342;
shr.u32 h, $4, 4;
prmt.b32 c, h, 0x43434343, 0x4140;
prmt.b32 d, h, 0x43434343, 0x4342;
and.b32 a, a, 0xff0fff0f;
and.b32 b, b, 0xff0fff0f;
and.b32 c, c, 0xff0fff0f;
and.b32 d, d, 0xff0fff0f;
fma.rn.bf16x2 $0, a, one, less;
fma.rn.bf16x2 $1, b, one, less;
fma.rn.bf16x2 $2, c, one, less;
fma.rn.bf16x2 $3, d, one, less;
}
"""
# The sign, exponent and mantissa of e2m1 are moved to where a bfloat16 has them.
_NVFP4 = """
{
.reg .b32 a, b, c, d, h, t;
shl.b32 h, $4, 4;
prmt.b32 a, h, 0, 0x1404;
prmt.b32 b, h, 0, 0x3424;
prmt.b32 c, $4, 0, 0x1404;
prmt.b32 d, $4, 0, 0x3424;
shr.u32 t, a, 6;
and.b32 t, t, 0x01c001c0;
lop3.b32 $0, a, 0x80008000, t, 0xea;
shr.u32 t, b, 6;
and.b32 t, t, 0x01c001c0;
lop3.b32 $1, b, 0x80008000, t, 0xea;
shr.u32 t, c, 6;
and.b32 t, t, 0x01c001c0;
lop3.b32 $2, c, 0x80008000, t, 0xea;
shr.u32 t, d, 6;
and.b32 t, t, 0x01c001c0;
lop3.b32 $3, d, 0x80008000, t, 0xea;
}
"""
# -0 is added, because compute capability 8.9 multiplies pairs of bfloat16 only in this way.
_PRODUCT = """
{
.reg .b32 zero;
mov.b32 zero, 0x80008000;
fma.rn.bf16x2 $0, $1, $2, zero;
}
"""
INT8_PTX = tl.constexpr(_INT8)
FP8_PTX = tl.constexpr(_FP8)
INT4_PTX = tl.constexpr(_INT4.replace("LESS", "0xc308c308"))
INT4_PTX_WITH_ZEROS = tl.constexpr(_INT4.replace("LESS", "0xc300c300"))
NVFP4_PTX = tl.constexpr(_NVFP4)
PRODUCT_PTX = tl.constexpr(_PRODUCT)


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
        distance = pair_distance(2 * codes.shape[-1])
        runs = codes.unflatten(-1, (-1, 1, distance))  # type: ignore[no-untyped-call]  # torch's
        codes = torch.cat([runs & 15, runs >> 4], -2).flatten(-3)
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
    SPAN: tl.constexpr,  # noqa: N803
    BLOCK_K: tl.constexpr,  # noqa: N803
    DISTANCE: tl.constexpr,  # noqa: N803
    PTX: tl.constexpr,  # noqa: N803
):
    """Returns the scales (or zeros) of a tile's codes, [N, SPAN].

    Each scale is repeated for the codes of its group. `line` [N] are the tile's rows of `scales`
    [.., columns], `inside` [N, 1] is True where such a row exists, and `begin` is the tile's first
    input. With a `DISTANCE` the codes are those of runs of so many inputs, of which each is
    followed by as many that do not count, and SPAN is BLOCK_K / 2. Otherwise SPAN is BLOCK_K. The
    result is bfloat16 if `scaled` multiplies in it, else float32.
    """
    if DISTANCE > 0 and GROUP < 2 * DISTANCE:
        EACH: tl.constexpr = GROUP if GROUP < DISTANCE else DISTANCE  # noqa: N806
        COUNT: tl.constexpr = SPAN // EACH  # noqa: N806
        RUN: tl.constexpr = DISTANCE // EACH  # noqa: N806  # scales of a run
        number = tl.arange(0, COUNT)
        column = (begin + (number // RUN) * (2 * DISTANCE) + (number % RUN) * EACH) // GROUP
        column = column[None, :]
    else:
        COUNT: tl.constexpr = BLOCK_K // GROUP if GROUP < BLOCK_K else 1  # type: ignore[no-redef]  # noqa: N806
        EACH: tl.constexpr = SPAN // COUNT  # type: ignore[no-redef]  # noqa: N806
        column = begin // GROUP + tl.arange(0, COUNT)[None, :]
    mask = inside & (column < columns)
    scale = tl.load(scales + line[:, None] * columns + column, mask=mask, other=0)
    # The powers of two make up for those by which the results of `numbers_of_codes`,
    # `pairs_of_codes` and `_halves_of_e4m3` are too small.
    if SCHEME == "nvfp4" and PTX:
        # The weights stay too small by 2^8: a bfloat16 has no larger factor for the largest scale.
        scale = (_halves_of_e4m3(scale).to(tl.float32) * 8.507059173023462e37).to(tl.bfloat16)
    elif SCHEME == "nvfp4":
        scale = _halves_of_e4m3(scale).to(tl.float32) * 4194304.0  # 2^(14 + 8)
    elif SCHEME == "fp8" and not PTX:
        scale = scale.to(tl.float32) * 256.0
    elif not (PTX and scale.dtype == tl.bfloat16):
        scale = scale.to(tl.float32)
    wide = tl.broadcast_to(scale[:, :, None], (scale.shape[0], COUNT, EACH))
    return tl.reshape(wide, (scale.shape[0], SPAN))


@triton.jit
def _halves_of_e4m3(codes):  # type: ignore[no-untyped-def]
    """Returns 2^-8 times the values of e4m3 bytes, as float16.

    The bits are moved to where a float16 has them, because compute capability 8.0 and 8.6 have no
    instruction for the conversion. Subnormal numbers come out right too.
    """
    wide = codes.to(tl.uint16)
    return (((wide & 128) << 8) | ((wide & 127) << 7)).to(tl.float16, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def numbers_of_codes(codes, SCHEME: tl.constexpr, PTX: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Returns the numbers of int8 or fp8 codes, one code a byte.

    Those of fp8 are 2^-8 times the values in the plain form.
    """
    if PTX:
        values = tl.inline_asm_elementwise(
            INT8_PTX if SCHEME == "int8" else FP8_PTX,
            "=r,=r,r",
            [codes],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=4,
        )
    elif SCHEME == "fp8":
        values = _halves_of_e4m3(codes)
    else:
        values = _integers(codes.to(tl.int32) ^ 128, 128.0)
    return values


@triton.jit  # type: ignore[untyped-decorator]
def pairs_of_codes(codes, SCHEME: tl.constexpr, ZEROS: tl.constexpr, PTX: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Returns the numbers of the low halves of int4 or nvfp4 codes' bytes, and of the high halves.

    int4's are code - 8, or the code itself if there are ZEROS. Those of nvfp4 are 2^-14 times the
    values in the plain form, and 2^-126 times in the PTX form.
    """
    if PTX:
        INTEGERS: tl.constexpr = INT4_PTX_WITH_ZEROS if ZEROS else INT4_PTX  # noqa: N806
        ASM: tl.constexpr = NVFP4_PTX if SCHEME == "nvfp4" else INTEGERS  # noqa: N806
        low, high = tl.inline_asm_elementwise(
            ASM,
            "=r,=r,=r,=r,r",
            [codes],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )
    elif SCHEME == "nvfp4":
        low = _e2m1(codes & 15)
        high = _e2m1(codes >> 4)
    else:
        offset: tl.constexpr = 0.0 if ZEROS else 8.0
        low = _integers((codes & 15).to(tl.int32), offset)
        high = _integers(codes.to(tl.int32) >> 4, offset)
    return low, high


@triton.jit  # type: ignore[untyped-decorator]
def _integers(bits, OFFSET: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Returns non-negative integers less an offset as float32.

    They become the last bits of 2^23, which most GPUs do faster than a conversion.
    """
    return (bits | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + OFFSET)


@triton.jit
def _e2m1(codes):  # type: ignore[no-untyped-def]
    """Returns 2^-14 times the values of e2m1 codes, as float16. See `_halves_of_e4m3`."""
    wide = codes.to(tl.uint16)
    return (((wide & 8) << 12) | ((wide & 7) << 9)).to(tl.float16, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def scaled(numbers, scale, zero, TYPE: tl.constexpr, PTX: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Returns the numbers times `scale` and less `zero`, if these are given, in the type TYPE."""
    if scale is not None:
        if PTX and scale.dtype == tl.bfloat16 and zero is None:
            numbers = tl.inline_asm_elementwise(
                PRODUCT_PTX,
                "=r,r,r",
                [numbers, scale],
                dtype=tl.bfloat16,
                is_pure=True,
                pack=2,
            )
        else:
            numbers = numbers.to(tl.float32) * scale.to(tl.float32)
    if zero is not None:
        numbers = numbers - zero.to(tl.float32)
    return numbers.to(TYPE)
