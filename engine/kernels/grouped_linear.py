"""Products of rows with the weights of their group, which are dequantised in registers.

On a GPU this kernel computes the experts, if `torch.nn.functional.grouped_mm` has no fast path or
the weights are quantised. With one group it computes any quantised linear. Only weights are
quantised, activations are not. The host never waits, so that a CUDA graph may hold the kernel: only
the device knows where groups end, and the grid has enough programs for groups of any sizes.

A tile of weights is read once for every BLOCK_M rows of its group. At about 16 rows a group (256
positions with 8 of 128 experts each), that is once for most groups. So the kernel takes as long as
loading the weights, if 64 x BLOCK_K of them (8 KiB dense, int8 and fp8; 4 KiB in 4 bits, 4.5 to 5
with scales) are dequantised and multiplied in the meantime. Rows, 4 to 8 KiB a tile, are read again
for every 64 outputs, but from the L2 cache: the programs that read the same rows run close to each
other, and so do those of one group.

Letters: T rows, E groups (experts), N outputs, K inputs, G scales a row of weights.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.dequantise import Scheme, numbers_of_codes, pairs_of_codes, scaled, tile_scales
from engine.kernels.target import Target, target_of
from engine.sizing.weights import pair_distance


class Tile(NamedTuple):
    """The size of a program's tile, its number of warps and of pipeline stages."""

    block_m: int  # rows
    block_n: int  # outputs
    block_k: int  # inputs at a time
    warps: int
    stages: int


# The smaller products of other GPUs. Compiled for 32 rows they take up to 36 KiB of shared memory,
# for 64 up to 80 KiB. Compute capability 8.6, 8.9 and 12.x have 99 KiB.
_TILES: dict[Scheme, Tile] = {
    "dense": Tile(64, 64, 64, 4, 4),
    "int8": Tile(64, 64, 128, 4, 3),
    "fp8": Tile(64, 64, 128, 4, 3),
    "int4": Tile(64, 64, 128, 4, 4),
    "nvfp4": Tile(64, 64, 128, 4, 4),
}
# Quantised weights on compute capability 9.x and 10.x, whose products of at least 64 rows read the
# weights from shared memory. Rows that do not exist are not loaded. A program writes dequantised
# weights there, so it loads their codes in the order of memory. On 9.x that takes 3.5 to 4
# instructions a weight instead of 6, and at most 112 KiB, so that two programs run together. On
# 10.x it takes 6 to 8.5, because results are in a memory of their own. So it is better there only
# if a tile has 64 rows anyway: Triton 3.7 takes 6.3 to 11.4 with the other tile then, and 6 with
# fewer rows.
_HOPPER_TILE = Tile(64, 128, 128, 4, 3)
# One canvas in a linear: each weight is dequantised once for its 256 rows, with 7.6 instructions
# instead of four times 3.5. It makes only a quarter of the programs. So the outputs have to be so
# many that these fill most of the 132 processors; with fewer, it would take longer.
_HOPPER_LINEAR_TILE = Tile(256, 64, 128, 8, 2)
_HOPPER_LINEAR_OUTPUTS = 6144


def choose_tile(
    scheme: Scheme,
    dtype: torch.dtype,
    target: Target | None,
    *,
    rows: int,
    groups: int,
    outputs: int,
) -> Tile:
    """Returns the tile for a product of this size, in this type and on this GPU."""
    # 1.5 times the average group, so that most groups are one tile and few rows are padding.
    fitting = min(64, max(16, triton.next_power_of_2(3 * rows // (2 * groups))))
    if scheme != "dense" and uses_ptx(dtype, target) and _has_large_products(target, fitting):
        if groups == 1 and rows > 128 and outputs >= _HOPPER_LINEAR_OUTPUTS:
            return _HOPPER_LINEAR_TILE
        return _HOPPER_TILE
    tile = _TILES[scheme]
    if dtype == torch.float32:  # a tile of rows has twice the bytes
        return tile._replace(block_m=fitting, block_k=tile.block_k // 2, stages=2)
    return tile._replace(block_m=fitting)


def uses_ptx(dtype: torch.dtype, target: Target | None) -> bool:
    """Returns whether weights are dequantised in the PTX form (see `engine.kernels.dequantise`)."""
    return dtype == torch.bfloat16 and target is not None and target.capability >= (8, 9)


def _has_large_products(target: Target | None, rows: int) -> bool:
    """Returns whether a tile of so many rows is better off with products of 64 rows."""
    if target is None:
        return False
    return target.capability[0] == 9 or (target.capability[0] == 10 and rows == 64)


def grouped_linear(
    x: Tensor,
    weights: Tensor,
    ends: Tensor | None,
    *,
    scheme: Scheme = "dense",
    scales: Tensor | None = None,
    zeros: Tensor | None = None,
    global_scale: Tensor | None = None,
) -> Tensor:
    """Returns each group's rows times its weights transposed: x [T, K] -> [T, N] in x's dtype.

    `ends` [E] int32 holds the index at which each group's rows end. The last one is T, and groups
    may be empty. Without `ends` all rows belong to one group, and no argument has the dimension E.
    The weights w are stored by scheme:

    - dense: weights [E, N, K] of x's dtype;
    - int8: weights [E, N, K] int8, w = code * scale;
    - fp8: weights [E, N, K] float8_e4m3fn, w = code * scale;
    - int4: weights [E, N, K/2] uint8, two codes a byte (see `pair_distance`);
      w = (code - 8) * scale, or code * scale - zero if `zeros` are given;
    - nvfp4: as int4, but codes are e2m1 and scales float8_e4m3fn; w = code * scale * global_scale.

    `scales` and `zeros` are [E, N, G], each for K / G inputs, which are all K or 16, 32, 64 or a
    multiple of 128. `global_scale` is [E] float32. Weights, scales and zeros are contiguous. x is
    float32, float16 or bfloat16. The dequantised weights have x's dtype, and sums are float32.
    """
    (rows, inputs), outputs = x.shape, weights.shape[-2]
    groups = 1 if ends is None else ends.shape[0]
    pack = 2 if scheme in ("int4", "nvfp4") else 1
    assert weights.numel() * pack == groups * outputs * inputs
    assert weights.is_contiguous()
    assert (scales is None) == (scheme == "dense")
    assert (global_scale is None) == (scheme != "nvfp4")
    out = x.new_empty(rows, outputs)
    if rows == 0:
        return out
    target = target_of(x.device)
    tile = choose_tile(scheme, x.dtype, target, rows=rows, groups=groups, outputs=outputs)
    block_k = tile.block_k
    columns, group, late = 0, 0, False
    if scales is not None:
        assert scales.is_contiguous()
        assert zeros is None or (zeros.is_contiguous() and zeros.shape == scales.shape)
        columns = scales.shape[-1]
        assert inputs % columns == 0
        group = inputs // columns if columns > 1 else max(inputs, block_k)
        assert columns == 1 or block_k % group == 0 or group % block_k == 0
        # A single scale a row multiplies the row's sum. Other scales multiply the weights.
        late = columns == 1 and zeros is None and scheme != "nvfp4"
    # Group e has the tiles from start // BLOCK_M + e on, which are enough for any number of rows.
    grid = (rows // tile.block_m + groups, triton.cdiv(outputs, tile.block_n))
    _kernel[grid](
        x.contiguous(),
        weights.view(torch.uint8) if scheme in ("fp8", "int8") else weights,
        ends,
        scales.view(torch.uint8) if scales is not None and scheme == "nvfp4" else scales,
        zeros,
        global_scale,
        out,
        rows,
        outputs,
        inputs,
        columns,
        scheme,
        pack,
        late,
        scheme != "dense" and uses_ptx(x.dtype, target),
        group,
        pair_distance(inputs) if pack == 2 else 0,
        inputs % block_k == 0,
        groups,
        triton.next_power_of_2(groups),
        tile.block_m,
        tile.block_n,
        block_k,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


def plain_grouped_linear(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Returns the same with dequantised weights [E, N, K], in plain PyTorch. The host waits."""
    starts = [0, *ends.tolist()[:-1]]
    parts = [x[i:j] @ w.T for i, j, w in zip(starts, ends.tolist(), weights, strict=True)]
    return torch.cat(parts)


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]  # Triton has no types
def _kernel(  # type: ignore[no-untyped-def]  # its arguments are not Python's
    x,
    weights,
    ends,
    scales,
    zeros,
    global_scale,
    out,
    rows,
    outputs,
    inputs,
    columns,
    SCHEME: tl.constexpr,  # noqa: N803  # Triton's way to write constants
    PACK: tl.constexpr,  # noqa: N803  # codes a byte
    LATE: tl.constexpr,  # noqa: N803
    PTX: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
    DISTANCE: tl.constexpr,  # noqa: N803  # between the codes of a byte, if it has two
    EVEN: tl.constexpr,  # noqa: N803  # tiles end where the inputs end
    GROUPS: tl.constexpr,  # noqa: N803
    GROUPS_2: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr,  # noqa: N803
    BLOCK_N: tl.constexpr,  # noqa: N803
    BLOCK_K: tl.constexpr,  # noqa: N803
):
    tile = tl.program_id(0)
    if ends is None:
        expert = tl.full((), 0, tl.int32)
        first, end = tile * BLOCK_M, rows
    else:
        numbers = tl.arange(0, GROUPS_2)
        before = (numbers > 0) & (numbers < GROUPS)
        starts = tl.load(ends + numbers - 1, mask=before, other=0)
        tiles = tl.where(numbers < GROUPS, starts // BLOCK_M + numbers, 2147483647)
        expert = tl.sum((tiles <= tile).to(tl.int32), 0) - 1
        start = tl.sum(tl.where(numbers == expert, starts, 0), 0)
        first = start + (tile - start // BLOCK_M - expert) * BLOCK_M
        end = tl.load(ends + expert)
    if first >= end:
        return
    row = first + tl.arange(0, BLOCK_M)
    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    # 64 bits: a layer's experts may have more than 2^31 weights.
    x_rows = x + row.to(tl.int64)[:, None] * inputs
    line = expert.to(tl.int64) * outputs + output
    lines = weights + line[:, None] * (inputs // PACK)
    row_mask, line_mask = (row < end)[:, None], (output < outputs)[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    SPAN: tl.constexpr = BLOCK_K // PACK  # noqa: N806
    inside = tl.arange(0, SPAN)[None, :]
    if PACK == 2:
        # The inputs of the codes in the low halves.
        low_k = (inside // DISTANCE) * (2 * DISTANCE) + inside % DISTANCE
    for begin in range(0, inputs, BLOCK_K):
        byte = begin // PACK + inside
        if EVEN:
            codes = tl.load(lines + byte, mask=line_mask, other=0)
        else:
            codes = tl.load(lines + byte, mask=line_mask & (byte < inputs // PACK), other=0)
        scale = None
        zero = None
        if SCHEME != "dense" and not LATE:
            scale = tile_scales(
                scales, line, line_mask, begin, columns, SCHEME, GROUP, SPAN, BLOCK_K, DISTANCE, PTX
            )
            if zeros is not None:
                zero = tile_scales(
                    zeros,
                    line,
                    line_mask,
                    begin,
                    columns,
                    SCHEME,
                    GROUP,
                    SPAN,
                    BLOCK_K,
                    DISTANCE,
                    PTX,
                )
        if PACK == 2:
            high_scale = scale
            high_zero = zero
            if not LATE and GROUP < 2 * DISTANCE:
                other = begin + DISTANCE
                high_scale = tile_scales(
                    scales,
                    line,
                    line_mask,
                    other,
                    columns,
                    SCHEME,
                    GROUP,
                    SPAN,
                    BLOCK_K,
                    DISTANCE,
                    PTX,
                )
                if zeros is not None:
                    high_zero = tile_scales(
                        zeros,
                        line,
                        line_mask,
                        other,
                        columns,
                        SCHEME,
                        GROUP,
                        SPAN,
                        BLOCK_K,
                        DISTANCE,
                        PTX,
                    )
            low, high = pairs_of_codes(codes, SCHEME, zeros is not None, PTX)
            low = scaled(low, scale, zero, x.dtype.element_ty, PTX)
            high = scaled(high, high_scale, high_zero, x.dtype.element_ty, PTX)
            k = begin + low_k
            if EVEN:
                part = tl.load(x_rows + k, mask=row_mask, other=0.0)
                high_part = tl.load(x_rows + k + DISTANCE, mask=row_mask, other=0.0)
            else:
                within = row_mask & (k < inputs)
                part = tl.load(x_rows + k, mask=within, other=0.0)
                high_part = tl.load(x_rows + k + DISTANCE, mask=within, other=0.0)
            total = tl.dot(part, tl.trans(low), total, input_precision="ieee")
            total = tl.dot(high_part, tl.trans(high), total, input_precision="ieee")
        else:
            if EVEN:
                part = tl.load(x_rows + byte, mask=row_mask, other=0.0)  # [BLOCK_M, BLOCK_K]
            else:
                part = tl.load(x_rows + byte, mask=row_mask & (byte < inputs), other=0.0)
            values = codes
            if SCHEME != "dense":
                values = scaled(
                    numbers_of_codes(codes, SCHEME, PTX), scale, zero, x.dtype.element_ty, PTX
                )
            total = tl.dot(part, tl.trans(values), total, input_precision="ieee")
    if LATE:
        factor = tl.load(scales + line, mask=output < outputs, other=0.0).to(tl.float32)
        total *= factor[None, :] * (256.0 if SCHEME == "fp8" and not PTX else 1.0)
    if global_scale is not None:
        total *= tl.load(global_scale + expert) * (256.0 if PTX else 1.0)
    offsets = row.to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(
        out + offsets, total.to(out.dtype.element_ty), mask=row_mask & (output < outputs)[None, :]
    )
