"""Attention of new tokens over their sequence's cache, which is read where it lies.

For head sizes that other kernels do not take (FlashAttention 2 and 3 end at 256), and for passes
in which the device alone knows how much the cache holds: places that hold nothing are not read,
where a mask would have them computed and thrown away. Query heads that share a key-value head
stand in one tile, so that neither keys are repeated nor read once for each. Nothing here waits for
the host, so that a CUDA graph may hold it.

Letters: T new tokens, S places of the cache, H query heads, K key-value heads, d head size. The
scale is 1.0, as in `engine/model/attention.py`. The running maximum and sum are those of Milakov
and Gimelshein (arXiv 1805.02867), the tiles those of FlashAttention (arXiv 2205.14135).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def prefix_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    span: Tensor | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """Softmax(queries keys') values: [H, T, d], [K, S, d], [K, S, d] -> [H, T, d].

    Of the S places those from span[0] to before span[1] are seen ([2] int32 or int64 on the
    device), all without a `span`; at least one. `causal`: the queries are the last T of these
    places, and each sees itself and what is before it, of that the last `window` if there is one.
    d is a power of two from 16 on and the last dimension contiguous; the others are not copied,
    whatever their strides. The result lies as [T, H, d], which is what follows attention.
    """
    (heads, count, size), (kv_heads, places, _) = queries.shape, keys.shape
    assert heads % kv_heads == 0
    assert values.shape == keys.shape == (kv_heads, places, size)
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
        places,
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
    """The same in PyTorch's operations, with every score in memory; waits for the host."""
    first, end = (0, keys.shape[1]) if span is None else span.tolist()
    group, count = queries.shape[0] // keys.shape[0], queries.shape[1]
    scores = queries @ keys.repeat_interleave(group, 0)[:, first:end].mT  # [H, T, end - first]
    if causal:
        places = torch.arange(first, end)
        back = (end - count + torch.arange(count))[:, None] - places
        scores[:, (back < 0) | (back >= (window or end))] = -torch.inf
    return scores.softmax(-1) @ values.repeat_interleave(group, 0)[:, first:end]


def _tiles(size: int, itemsize: int) -> tuple[int, int, int, int]:
    """Rows and places of a tile, warps, pipeline stages.

    In shared memory are keys twice, as the next tile's are on their way, values once and the
    weights of a tile: 3 x 32 x 512 x 2 + 32 x 32 x 2 bytes = 98 KiB at d = 512 in 16 bits, of 99
    that compute capability 8.6, 8.9 and 12.x have (9.0: 227); 50 KiB at 256. More rows a tile would
    read keys less often, but leave more of a GPU idle: with 32 a canvas of 256 makes 128 programs
    in layers of either kind, for the 132 processors of an H100; and at 512 registers suffice for no
    more. So compiled; not measured. In 32 bits 16 x 512 x 4 bytes of each are 64 KiB.
    """
    if itemsize > 2:
        return 16, 16, 8, 1
    return 32, 32, 8 if size > 256 else 4, 2


# Not for each length of a prompt a kernel of its own.
@triton.jit(do_not_specialize=["count", "places"])  # type: ignore[untyped-decorator]  # Triton has no types
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
    places,
    CAUSAL: tl.constexpr,  # noqa: N803  # Triton's way to write constants
    WINDOW: tl.constexpr,  # noqa: N803
    SIZE: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr,  # noqa: N803
    BLOCK_N: tl.constexpr,  # noqa: N803
):
    kv_head = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # of group * count
    token, head = row % count, kv_head * group + row // count
    some = (row < group * count)[:, None]
    within = tl.arange(0, SIZE)[None, :]
    query = tl.load(
        queries + (head * query_head + token * query_token)[:, None] + within, mask=some, other=0.0
    )
    if span is None:
        first, end = tl.full((), 0, tl.int32), tl.full((), places, tl.int32)
    else:
        first, end = tl.load(span).to(tl.int32), tl.load(span + 1).to(tl.int32)
    begin, stop = first, end
    own = end - count + token  # the places of the queries, if they are among them
    if CAUSAL:
        stop = tl.max(own, 0) + 1
        if WINDOW > 0:
            begin = tl.maximum(first, tl.min(own, 0) - WINDOW + 1)
    peak = tl.full((BLOCK_M,), -1e30, tl.float32)  # finite: a row may see nothing of a tile
    mass = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, SIZE), tl.float32)
    # 64 bits: a long context of several heads has more than 2^31 numbers.
    head_keys = keys + kv_head.to(tl.int64) * key_head
    head_values = values + kv_head.to(tl.int64) * value_head
    for at in range(begin, stop, BLOCK_N):
        place = at + tl.arange(0, BLOCK_N)
        known = (place < stop)[:, None]
        key = tl.load(
            head_keys + place.to(tl.int64)[:, None] * key_token + within, mask=known, other=0.0
        )
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")  # [BLOCK_M, BLOCK_N]
        seen = place[None, :] < stop
        if CAUSAL:
            back = own[:, None] - place[None, :]
            seen = seen & (back >= 0)
            if WINDOW > 0:
                seen = seen & (back < WINDOW)
        scores = tl.where(seen, scores * 1.4426950408889634, -float("inf"))  # log2(e): for exp2
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrunk = tl.exp2(peak - higher)
        mass = mass * shrunk + tl.sum(weights, 1)
        value = tl.load(
            head_values + place.to(tl.int64)[:, None] * value_token + within, mask=known, other=0.0
        )
        total = tl.dot(
            weights.to(value.dtype), value, total * shrunk[:, None], input_precision="ieee"
        )
        peak = higher
    total = total / mass[:, None]
    tl.store(
        out + (head * out_head + token * out_token)[:, None] + within,
        total.to(out.dtype.element_ty),
        mask=some,
    )
