"""Attention of new tokens over their sequence's cache, which is not copied.

The kernel has two uses. It supports head sizes that other kernels do not (FlashAttention 2 and 3
end at 256). And it serves passes in which only the device knows how much the cache stores: it does
not read unseen entries, whereas with a mask their scores are computed and thrown away.

Query heads that share a key-value head are in one tile, so that keys are neither repeated nor read
once for each head. Every tile reads all keys and values that it sees, through the L2 cache, so its
rows are as many as registers and shared memory allow. That leaves fewer tiles than a large GPU has
processors. So the seen entries are split among several programs, whose results a second kernel
combines. The host never waits, so that a CUDA graph may hold the kernels: the number of programs
does not depend on how much is seen.

The scale is 1.0, as in `engine/model/attention.py`. The running maximum and sum are those of
Milakov and Gimelshein (arXiv 1805.02867), the tiles those of FlashAttention (arXiv 2205.14135).

Letters: T new tokens, S entries of the cache, H query heads, K key-value heads, d head size.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.target import Target, target_of
from engine.sizing.chunks import ATTENTION_SPLITS

_COMBINED_ROWS = 4  # rows of queries that a program combines


class Tile(NamedTuple):
    """The size of a program's tile, its number of warps and of pipeline stages."""

    rows: int  # queries of the heads that share a key-value head
    entries: int  # keys and values at a time
    warps: int
    stages: int


def prefix_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    span: Tensor | None = None,
    *,
    slots: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """Returns softmax(queries keys') values: [H, T, d], [K, S, d], [K, S, d] -> [H, T, d].

    `span` ([2] int32 or int64 on the device) limits the seen entries: from span[0] to before
    span[1], which is at least one. Without it all S entries are seen. If `causal` is set, the
    queries are the last T of these entries. Each sees itself and the entries before it, or with a
    `window` the last `window` of these, itself included.

    With `slots` ([N] integers on the device), there are N segments of T tokens each: the queries
    and the result are [H, N T, d], keys and values [B, K, S, d], and `span` [N, 2]. Each segment
    attends to its slot, which is one of B.

    d is a power of two from 16 on. The last dimension is contiguous, and the others may have any
    strides. The result's memory is laid out as [T, H, d], the order that the output projection
    needs.
    """
    (heads, rows, size), (*_, kv_heads, entries, _) = queries.shape, keys.shape
    segments = 1 if slots is None else slots.shape[0]
    count = rows // segments
    assert rows == segments * count
    assert keys.ndim == (3 if slots is None else 4)
    assert span is None or span.numel() == 2 * segments
    assert heads % kv_heads == 0
    assert values.shape == keys.shape
    assert keys.shape[-1] == size
    assert size >= 16
    assert size & (size - 1) == 0
    assert queries.stride(2) == keys.stride(-1) == values.stride(-1) == 1
    assert causal or window is None
    out = queries.new_empty(rows, heads, size).transpose(0, 1)
    target = target_of(queries.device)
    tile = choose_tile(size, queries.itemsize, target)
    group = heads // kv_heads
    tiles = triton.cdiv(group * count, tile.rows)
    splits = choose_splits(tiles * kv_heads * segments, target)
    # Written by each split: the unnormalised sum of values, the peak of scores and the mass.
    sums = out
    statistics = None
    if splits > 1:
        sums = queries.new_empty(splits, heads, rows, size, dtype=torch.float32)
        statistics = queries.new_empty(splits, 2, heads, rows, dtype=torch.float32)
    _kernel[(tiles, kv_heads, segments * splits)](
        queries,
        keys,
        values,
        span,
        slots,
        sums,
        statistics,
        *queries.stride()[:2],
        *keys.stride()[-3:-1],
        *values.stride()[-3:-1],
        *sums.stride()[-3:-1],
        0 if slots is None else keys.stride(0),
        0 if slots is None else values.stride(0),
        count,
        group,
        entries,
        causal,
        window or 0,
        splits,
        size,
        tile.rows,
        tile.entries,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if statistics is not None:
        _combine[(triton.cdiv(heads * rows, _COMBINED_ROWS),)](
            sums,
            statistics,
            out,
            *out.stride()[:2],
            heads,
            rows,
            splits,
            size,
            _COMBINED_ROWS,
            num_warps=4,
        )
    return out


def plain_prefix_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    span: Tensor | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """Returns the same in plain PyTorch, with every score in memory. The host waits."""
    first, end = (0, keys.shape[1]) if span is None else span.tolist()
    group, count = queries.shape[0] // keys.shape[0], queries.shape[1]
    scores = queries @ keys.repeat_interleave(group, 0)[:, first:end].mT  # [H, T, end - first]
    if causal:
        entries = torch.arange(first, end)
        back = (end - count + torch.arange(count))[:, None] - entries
        scores[:, (back < 0) | (back >= (window or end))] = -torch.inf
    return scores.softmax(-1) @ values.repeat_interleave(group, 0)[:, first:end]


def choose_tile(size: int, itemsize: int, target: Target | None) -> Tile:
    """Returns the tile for this head size and element size on this GPU.

    Shared memory holds a tile's queries, keys (those of the next tile are being loaded meanwhile)
    and values, and its weights. In 16 bits, and at d = 512, the compiler takes 192 KiB of the 227
    on compute capability 9.0 for 64 rows and 32 entries. The 99 KiB of 8.6, 8.9 and 12.x suffice
    for 16 entries (98 KiB). At d = 256, 64 entries take 160 KiB and 32 take 68. With more rows,
    registers would be stored in memory. 32-bit elements need twice the bytes.
    """
    large = target is not None and target.capability[0] in (9, 10)
    if itemsize > 2:
        return Tile(16, 16, 8, 1)
    if size > 256:
        return Tile(64, 32 if large else 16, 8, 2)
    if size == 256:
        return Tile(64, 64 if large else 32, 8, 2)
    return Tile(32, 32, 4, 2)


def choose_splits(programs: int, target: Target | None) -> int:
    """Returns among how many programs each tile's entries are split.

    It is the largest number with which all of them run at the same time, one on each processor.
    """
    if target is None:
        return 1
    return max(1, min(ATTENTION_SPLITS, target.multiprocessors // programs))


# Not specialised, so that not every length of a prompt compiles a kernel of its own.
@triton.jit(do_not_specialize=["count", "entries"])  # type: ignore[untyped-decorator]  # Triton has no types
def _kernel(  # type: ignore[no-untyped-def]  # its arguments are not Python's
    queries,
    keys,
    values,
    span,
    slots,
    out,
    statistics,
    query_head,
    query_token,
    key_head,
    key_token,
    value_head,
    value_token,
    out_head,
    out_token,
    key_slot,
    value_slot,
    count,
    group,
    entries,
    CAUSAL: tl.constexpr,  # noqa: N803  # Triton's way to write constants
    WINDOW: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
    SIZE: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr,  # noqa: N803
    BLOCK_N: tl.constexpr,  # noqa: N803
):
    kv_head = tl.program_id(1)
    segment, split = tl.program_id(2) // SPLITS, tl.program_id(2) % SPLITS
    if slots is not None:
        slot = tl.load(slots + segment).to(tl.int64)
        keys += slot * key_slot
        values += slot * value_slot
        span += 2 * segment
        queries += segment * count * query_token
        out += segment * count * out_token
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # of group * count rows
    token, head = row % count, kv_head * group + row // count
    row_mask = (row < group * count)[:, None]
    within = tl.arange(0, SIZE)[None, :]
    query = tl.load(
        queries + (head * query_head + token * query_token)[:, None] + within,
        mask=row_mask,
        other=0.0,
    )
    if span is None:
        first, end = tl.full((), 0, tl.int32), tl.full((), entries, tl.int32)
    else:
        first, end = tl.load(span).to(tl.int32), tl.load(span + 1).to(tl.int32)
    begin, stop = first, end
    own = end - count + token  # the queries' own entries, if `causal`
    if CAUSAL:
        stop = tl.max(own, 0) + 1
        if WINDOW > 0:
            begin = tl.maximum(first, tl.min(own, 0) - WINDOW + 1)
    if SPLITS > 1:
        share = tl.cdiv(stop - begin, SPLITS * BLOCK_N) * BLOCK_N
        begin += split * share
        stop = tl.minimum(stop, begin + share)
    peak = tl.full((BLOCK_M,), -1e30, tl.float32)  # finite, as a row may see nothing of a tile
    mass = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, SIZE), tl.float32)
    # 64 bits: a long context of several heads has more than 2^31 numbers.
    head_keys = keys + kv_head.to(tl.int64) * key_head
    head_values = values + kv_head.to(tl.int64) * value_head
    for start in range(begin, stop, BLOCK_N):
        entry = start + tl.arange(0, BLOCK_N)
        entry_mask = (entry < stop)[:, None]
        key = tl.load(
            head_keys + entry.to(tl.int64)[:, None] * key_token + within, mask=entry_mask, other=0.0
        )
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")  # [BLOCK_M, BLOCK_N]
        seen = entry[None, :] < stop
        if CAUSAL:
            back = own[:, None] - entry[None, :]
            seen = seen & (back >= 0)
            if WINDOW > 0:
                seen = seen & (back < WINDOW)
        scores = tl.where(seen, scores * 1.4426950408889634, -float("inf"))  # log2(e): for exp2
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrunk = tl.exp2(peak - higher)
        mass = mass * shrunk + tl.sum(weights, 1)
        value = tl.load(
            head_values + entry.to(tl.int64)[:, None] * value_token + within,
            mask=entry_mask,
            other=0.0,
        )
        total = tl.dot(
            weights.to(value.dtype), value, total * shrunk[:, None], input_precision="ieee"
        )
        peak = higher
    if SPLITS > 1:
        rows = tl.num_programs(2) // SPLITS * count
        numbers = tl.num_programs(1) * group * rows  # one for each head and row
        out += split.to(tl.int64) * numbers * SIZE
        statistics += split * 2 * numbers + head * rows + segment * count + token
        tl.store(statistics, peak, mask=row < group * count)
        tl.store(statistics + numbers, mass, mask=row < group * count)
    else:
        total = total / mass[:, None]
    tl.store(
        out + (head * out_head + token * out_token)[:, None] + within,
        total.to(out.dtype.element_ty),
        mask=row_mask,
    )


@triton.jit(do_not_specialize=["heads", "count"])  # type: ignore[untyped-decorator]
def _combine(  # type: ignore[no-untyped-def]
    sums,
    statistics,
    out,
    out_head,
    out_token,
    heads,
    count,
    SPLITS: tl.constexpr,  # noqa: N803
    SIZE: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
):
    """Write the attention [H, T, d] of the splits' sums [SPLITS, H, T, d] and their statistics.

    The statistics [SPLITS, 2, H, T] are the peaks and the masses.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = row < heads * count
    within = tl.arange(0, SIZE)[None, :]
    peak = tl.full((ROWS,), -1e30, tl.float32)
    for split in tl.static_range(SPLITS):
        each = tl.load(statistics + split * 2 * heads * count + row, mask=mask, other=0.0)
        peak = tl.maximum(peak, each)
    mass = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, SIZE), tl.float32)
    for split in tl.static_range(SPLITS):
        first = statistics + split * 2 * heads * count + row
        factor = tl.exp2(tl.load(first, mask=mask, other=0.0) - peak)
        mass += factor * tl.load(first + heads * count, mask=mask, other=1.0)
        rows = split * heads.to(tl.int64) * count + row
        part = tl.load(sums + rows[:, None] * SIZE + within, mask=mask[:, None], other=0.0)
        total += factor[:, None] * part
    token, head = row % count, row // count
    tl.store(
        out + (head * out_head + token * out_token)[:, None] + within,
        (total / mass[:, None]).to(out.dtype.element_ty),
        mask=mask[:, None],
    )
