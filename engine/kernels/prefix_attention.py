"""Attention of new tokens over their sequence's cache, which is not copied.

The kernel has two uses. It supports head sizes that other kernels do not (FlashAttention 2 and 3
end at 256). And it serves passes in which only the device knows how much the cache stores: it does
not read unseen entries, whereas with a mask their scores are computed and thrown away.

Query heads that share a key-value head are in one tile, so that keys are neither repeated nor read
once for each head. The host never waits, so that a CUDA graph may hold the kernel.

The scale is 1.0, as in `engine/model/attention.py`. The running maximum and sum are those of
Milakov and Gimelshein (arXiv 1805.02867), the tiles those of FlashAttention (arXiv 2205.14135).

Letters: T new tokens, S entries of the cache, H query heads, K key-value heads, d head size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.target import capability_of


def prefix_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    span: Tensor | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """Returns softmax(queries keys') values: [H, T, d], [K, S, d], [K, S, d] -> [H, T, d].

    `span` ([2] int32 or int64 on the device) limits the seen entries: from span[0] to before
    span[1], which is at least one. Without it all S entries are seen. If `causal` is set, the
    queries are the last T of these entries. Each sees itself and the entries before it, or with a
    `window` the last `window` of these, itself included.

    d is a power of two from 16 on. The last dimension is contiguous, and the others may have any
    strides. The result's memory is laid out as [T, H, d], the order that the output projection
    needs.
    """
    (heads, count, size), (kv_heads, entries, _) = queries.shape, keys.shape
    assert heads % kv_heads == 0
    assert values.shape == keys.shape == (kv_heads, entries, size)
    assert size >= 16
    assert size & (size - 1) == 0
    assert queries.stride(2) == keys.stride(2) == values.stride(2) == 1
    assert causal or window is None
    out = queries.new_empty(count, heads, size).transpose(0, 1)
    block_m, block_n, warps, stages = _tiles(size, queries.itemsize)
    group = heads // kv_heads
    _kernel[(triton.cdiv(group * count, block_m), kv_heads)](
        queries,
        keys,
        values,
        span,
        out,
        *queries.stride()[:2],
        *keys.stride()[:2],
        *values.stride()[:2],
        *out.stride()[:2],
        count,
        group,
        entries,
        causal,
        window or 0,
        size,
        block_m,
        block_n,
        num_warps=warps,
        num_stages=stages,
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


def _tiles(size: int, itemsize: int) -> tuple[int, int, int, int]:
    """Returns a tile's rows and entries, the number of warps and of pipeline stages.

    Shared memory holds a tile's keys twice (the next tile's are being loaded), its values once, and
    its weights. In 16 bits these are 3 x 32 x 512 x 2 + 32 x 32 x 2 bytes = 98 KiB at d = 512, and
    50 KiB at 256. Compute capability 8.6, 8.9 and 12.x have 99 KiB, 9.0 has 227 KiB.

    With more rows a tile, keys would be read less often, but more of a GPU would be idle: with 32,
    a canvas of 256 makes 128 programs in layers of either kind, for the 132 processors of an H100.
    And at d = 512 there are not enough registers for more rows. The compiler reports these sizes;
    the speed was not measured. In 32 bits, 16 x 512 x 4 bytes of each are 64 KiB.
    """
    if itemsize > 2:
        return 16, 16, 8, 1
    return 32, 32, 8 if size > 256 else 4, 2


# Not specialised, so that not every length of a prompt compiles a kernel of its own.
@triton.jit(do_not_specialize=["count", "entries"])  # type: ignore[untyped-decorator]  # Triton has no types
def _kernel(  # type: ignore[no-untyped-def]  # its arguments are not Python's
    queries,
    keys,
    values,
    span,
    out,
    query_head,
    query_token,
    key_head,
    key_token,
    value_head,
    value_token,
    out_head,
    out_token,
    count,
    group,
    entries,
    CAUSAL: tl.constexpr,  # noqa: N803  # Triton's way to write constants
    WINDOW: tl.constexpr,  # noqa: N803
    SIZE: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr,  # noqa: N803
    BLOCK_N: tl.constexpr,  # noqa: N803
):
    kv_head = tl.program_id(1)
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
    total = total / mass[:, None]
    tl.store(
        out + (head * out_head + token * out_token)[:, None] + within,
        total.to(out.dtype.element_ty),
        mask=row_mask,
    )
