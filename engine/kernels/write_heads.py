"""Norms and rotation between the product for queries, keys and values and attention, in one kernel.

Queries and keys are normed and rotated, values are normed without a weight. Keys and values are
written into the caches of their canvases, behind the stored entries. Only the device knows where
that is, so that a CUDA graph may hold the kernel. PyTorch takes fifteen launches for this.

Letters: N canvases (or other segments of equal length), R rows of all of them, H query heads, K
key-value heads, d head size, B caches of equal size, S entries of a cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

_HEADS = 4  # of a row, which a program has


def write_heads(
    projected: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    rope: tuple[Tensor, Tensor],
    cache: Tensor,
    slots: Tensor,
    behind: Tensor,
    *,
    query_heads: int,
    eps: float,
) -> Tensor:
    """Write keys and values into the caches, and return queries, [R, H, d].

    `projected` [R, (H + 2 K) d] is the product's result, with queries before keys before values. If
    it is [R, (H + K) d], keys are used as values too. The weights [d] are those of the norms, and
    `rope` are cos and sin [R, d], of which the second half repeats the first. `cache` is
    [B, 2, K, S, d] with keys before values. Each canvas has the cache `slots` [N], and its first
    new entry has the index `behind` [N]. d is even, and all tensors are contiguous.
    """
    (rows, width), (_, two, kv_heads, entries, size) = projected.shape, cache.shape
    count = slots.shape[0]
    cos, sin = rope
    heads = width // size
    assert two == 2
    assert width == heads * size
    assert rows % count == 0
    assert heads - query_heads in (kv_heads, 2 * kv_heads)
    assert cos.shape == sin.shape == (rows, size)
    assert all(each.is_contiguous() for each in (projected, cos, sin, cache))
    queries = projected.new_empty(rows, query_heads, size)
    _kernel[(rows, triton.cdiv(heads, _HEADS))](
        projected,
        query_weight,
        key_weight,
        cos,
        sin,
        cache,
        slots,
        behind,
        queries,
        rows // count,
        entries,
        eps,
        query_heads,
        kv_heads,
        heads,
        size // 2,
        triton.next_power_of_2(size // 2),
        _HEADS,
        num_warps=4,
    )
    return queries


def plain_write_heads(
    projected: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    rope: tuple[Tensor, Tensor],
    cache: Tensor,
    slots: Tensor,
    behind: Tensor,
    *,
    query_heads: int,
    eps: float,
) -> Tensor:
    """Do the same in plain PyTorch. The host waits."""
    kv_heads, size = cache.shape[2], cache.shape[4]
    heads = projected.view(projected.shape[0], -1, size)
    queries, keys = heads[:, :query_heads], heads[:, query_heads : query_heads + kv_heads]
    values = heads[:, -kv_heads:]

    def rotated(x: Tensor, weight: Tensor) -> Tensor:
        x = F.rms_norm(x, (size,), weight, eps)
        first, second = x.chunk(2, -1)
        cos, sin = (each[:, None] for each in rope)
        return x * cos + torch.cat([-second, first], -1) * sin

    parts = (rotated(keys, key_weight), F.rms_norm(values, (size,), eps=eps))
    for kind, part in enumerate(parts):
        each_canvas = part.chunk(slots.shape[0])
        for slot, start, new in zip(slots.tolist(), behind.tolist(), each_canvas, strict=True):
            cache[slot, kind, :, start : start + new.shape[0]] = new.transpose(0, 1)
    return rotated(queries, query_weight)


@triton.jit(do_not_specialize=["count", "entries"])  # type: ignore[untyped-decorator]  # Triton has no types
def _kernel(  # type: ignore[no-untyped-def]  # its arguments are not Python's
    projected,
    query_weight,
    key_weight,
    cos,
    sin,
    cache,
    slots,
    behind,
    queries,
    count,
    entries,
    eps,
    QUERY_HEADS: tl.constexpr,  # noqa: N803  # Triton's way to write constants
    KV_HEADS: tl.constexpr,  # noqa: N803
    HEADS: tl.constexpr,  # noqa: N803
    HALF: tl.constexpr,  # noqa: N803
    HALF_2: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0)
    head = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[:, None]
    within = tl.arange(0, HALF_2)[None, :]
    inside = within < HALF
    mask = (head < HEADS) & inside
    source = projected + row.to(tl.int64) * (HEADS * 2 * HALF) + head * (2 * HALF) + within
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
    mean = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * HALF)
    factor = tl.rsqrt(mean + eps)[:, None]
    first *= factor
    second *= factor

    is_query = head < QUERY_HEADS
    is_key = (head >= QUERY_HEADS) & (head < QUERY_HEADS + KV_HEADS)
    of_query = tl.load(query_weight + within, mask=inside, other=0.0).to(tl.float32)
    of_key = tl.load(key_weight + within, mask=inside, other=0.0).to(tl.float32)
    low = first * tl.where(is_query, of_query, of_key)
    of_query = tl.load(query_weight + HALF + within, mask=inside, other=0.0).to(tl.float32)
    of_key = tl.load(key_weight + HALF + within, mask=inside, other=0.0).to(tl.float32)
    high = second * tl.where(is_query, of_query, of_key)
    angle = row * (2 * HALF) + within
    c = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    rotated_low = low * c - high * s
    rotated_high = high * c + low * s

    kind = queries.dtype.element_ty
    target = queries + row.to(tl.int64) * (QUERY_HEADS * 2 * HALF) + head * (2 * HALF) + within
    tl.store(target, rotated_low.to(kind), mask=mask & is_query)
    tl.store(target + HALF, rotated_high.to(kind), mask=mask & is_query)

    # 64 bits: a long context of several heads has more than 2^31 numbers.
    canvas = row // count
    slot = tl.load(slots + canvas).to(tl.int64)
    entry = tl.load(behind + canvas).to(tl.int64) + row % count
    each = entries.to(tl.int64) * (2 * HALF)  # numbers of a head
    keys = cache + slot * (2 * KV_HEADS) * each + entry * (2 * HALF)
    target = keys + (head - QUERY_HEADS) * each + within
    tl.store(target, rotated_low.to(kind), mask=mask & is_key)
    tl.store(target + HALF, rotated_high.to(kind), mask=mask & is_key)
    values = keys + KV_HEADS * each
    if HEADS == QUERY_HEADS + KV_HEADS:
        is_value = is_key
        target = values + (head - QUERY_HEADS) * each + within
    else:
        is_value = head >= QUERY_HEADS + KV_HEADS
        target = values + (head - QUERY_HEADS - KV_HEADS) * each + within
    tl.store(target, first.to(kind), mask=mask & is_value)
    tl.store(target + HALF, second.to(kind), mask=mask & is_value)
