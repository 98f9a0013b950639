"""The residual, three norms and the router between attention and the MLPs, as one kernel.

The router's product is in it, because its weight is small (128 x 2,816): each program reads it
whole, from the L2 cache. On its own that would take as long, because a processor's way to that
cache is the limit. So the programs have few rows. A row's norm is one factor, by which the sums are
multiplied at last, so that the product can run before the norm is known.

Letters: R rows, D hidden size, E experts, k experts a row.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

_FEW_ROWS = 1024  # up to which a program has 8 rows instead of 16


class Routed(NamedTuple):
    """The residual stream behind attention, the inputs of both MLPs, and the experts' choice."""

    x: Tensor  # [R, D]
    dense: Tensor  # [R, D]
    sparse: Tensor  # [R, D]
    experts: Tensor  # [R, k] int32
    shares: Tensor  # [R, k] float32


def route(
    x: Tensor,
    attended: Tensor,
    post_weight: Tensor,
    dense_weight: Tensor,
    sparse_weight: Tensor,
    router_scale: Tensor,
    router: Tensor,
    expert_scale: Tensor,
    *,
    per_token: int,
    eps: float,
) -> Routed:
    """Returns x + norm(attended), two norms of it, and the experts that the router chooses.

    x and `attended` are [R, D] and contiguous. The weights of the norms and `router_scale` are [D].
    The router's input is normed without a weight and multiplied by `router_scale` / sqrt(D), and
    `router` [E, D] is its product's weight. The `per_token` best experts of each row share 1 by
    softmax, and each share is multiplied by its expert's `expert_scale` [E]. Of experts with equal
    scores the first is better. All are in x's dtype. Whatever the numbers are, experts are from 0
    to E - 1.
    """
    (rows, size), experts = x.shape, router.shape[0]
    assert attended.shape == x.shape
    assert router.shape == (experts, size)
    assert per_token <= experts
    assert all(each.is_contiguous() for each in (x, attended, router))
    result = Routed(
        torch.empty_like(x),
        torch.empty_like(x),
        torch.empty_like(x),
        torch.empty(rows, per_token, dtype=torch.int32, device=x.device),
        torch.empty(rows, per_token, dtype=torch.float32, device=x.device),
    )
    few = 8 if rows <= _FEW_ROWS else 16
    narrow = x.itemsize > 2  # a tile of float32 has twice the bytes
    _kernel[(triton.cdiv(rows, few),)](
        x,
        attended,
        post_weight,
        dense_weight,
        sparse_weight,
        router_scale,
        router,
        expert_scale,
        *result,
        rows,
        size,
        experts,
        eps,
        size**-0.5,
        per_token,
        max(2, triton.next_power_of_2(per_token)),
        few,
        max(16, triton.next_power_of_2(experts)),
        64 if narrow else 128,
        num_warps=4,
        num_stages=2 if narrow else 3,
    )
    return result


def plain_route(
    x: Tensor,
    attended: Tensor,
    post_weight: Tensor,
    dense_weight: Tensor,
    sparse_weight: Tensor,
    router_scale: Tensor,
    router: Tensor,
    expert_scale: Tensor,
    *,
    per_token: int,
    eps: float,
) -> Routed:
    """Returns the same in plain PyTorch."""
    shape = x.shape[-1:]
    x = x + F.rms_norm(attended, shape, post_weight, eps)
    scores = F.linear(F.rms_norm(x, shape, eps=eps) * router_scale * shape[0] ** -0.5, router)
    shares, experts = scores.softmax(-1, dtype=torch.float32).topk(per_token)
    shares = shares / shares.sum(-1, keepdim=True) * expert_scale[experts]
    dense, sparse = (F.rms_norm(x, shape, each, eps) for each in (dense_weight, sparse_weight))
    return Routed(x, dense, sparse, experts.int(), shares)


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]  # Triton has no types
def _kernel(  # type: ignore[no-untyped-def]  # its arguments are not Python's
    x,
    attended,
    post_weight,
    dense_weight,
    sparse_weight,
    router_scale,
    router,
    expert_scale,
    out,
    dense,
    sparse,
    chosen,
    shares,
    rows,
    size,
    experts,
    eps,
    factor,
    PER_TOKEN: tl.constexpr,  # noqa: N803  # Triton's way to write constants
    PER_TOKEN_2: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    EXPERTS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    kind = out.dtype.element_ty
    # Tiles of a product have 16 rows at least. The others of a program with fewer are not loaded.
    within = tl.arange(0, 16)
    row = tl.program_id(0) * ROWS + within
    valid = (within < ROWS) & (row < rows)
    row_mask = valid[:, None]
    offsets = row.to(tl.int64)[:, None] * size

    total = tl.zeros((16,), tl.float32)
    for begin in range(0, size, BLOCK):
        column = begin + tl.arange(0, BLOCK)[None, :]
        part = tl.load(attended + offsets + column, mask=row_mask & (column < size), other=0.0)
        part = part.to(tl.float32)
        total += tl.sum(part * part, 1)
    attended_factor = tl.rsqrt(total / size + eps)[:, None]

    number = tl.arange(0, EXPERTS)
    scores = tl.zeros((16, EXPERTS), tl.float32)
    total = tl.zeros((16,), tl.float32)
    for begin in range(0, size, BLOCK):
        column = begin + tl.arange(0, BLOCK)[None, :]
        inside = column < size
        mask = row_mask & inside
        old = tl.load(x + offsets + column, mask=mask, other=0.0).to(tl.float32)
        part = tl.load(attended + offsets + column, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(post_weight + column, mask=inside, other=0.0).to(tl.float32)
        new = (old + part * attended_factor * weight).to(kind)
        tl.store(out + offsets + column, new, mask=mask)
        new = new.to(tl.float32)
        total += tl.sum(new * new, 1)
        scale = tl.load(router_scale + column, mask=inside, other=0.0).to(tl.float32)
        tile = tl.load(
            router + number[:, None] * size + column,
            mask=(number < experts)[:, None] & inside,
            other=0.0,
        )
        scores = tl.dot((new * scale).to(kind), tl.trans(tile), scores, input_precision="ieee")
    new_factor = tl.rsqrt(total / size + eps)[:, None]

    for begin in range(0, size, BLOCK):
        column = begin + tl.arange(0, BLOCK)[None, :]
        inside = column < size
        mask = row_mask & inside
        # Computed again, because `out` may have been stored by other threads.
        old = tl.load(x + offsets + column, mask=mask, other=0.0).to(tl.float32)
        part = tl.load(attended + offsets + column, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(post_weight + column, mask=inside, other=0.0).to(tl.float32)
        new = (old + part * attended_factor * weight).to(kind).to(tl.float32) * new_factor
        weight = tl.load(dense_weight + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(dense + offsets + column, (new * weight).to(kind), mask=mask)
        weight = tl.load(sparse_weight + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(sparse + offsets + column, (new * weight).to(kind), mask=mask)

    scores = tl.where((number < experts)[None, :], scores * new_factor * factor, -float("inf"))
    slot = tl.arange(0, PER_TOKEN_2)[None, :]
    best = tl.zeros((16, PER_TOKEN_2), tl.float32)
    index = tl.zeros((16, PER_TOKEN_2), tl.int32)
    for turn in tl.static_range(PER_TOKEN):
        largest = tl.max(scores, 1)
        # The first of equals. The last expert, if scores are not numbers.
        equal = tl.where(scores == largest[:, None], number[None, :], experts - 1)
        first = tl.min(equal, 1)
        best = tl.where(slot == turn, largest[:, None], best)
        index = tl.where(slot == turn, first[:, None], index)
        scores = tl.where(number[None, :] == first[:, None], -float("inf"), scores)
    top = tl.max(tl.where(slot == 0, best, -float("inf")), 1)[:, None]
    share = tl.where(slot < PER_TOKEN, tl.exp(best - top), 0.0)
    share = share / tl.sum(share, 1)[:, None]
    share *= tl.load(expert_scale + index).to(tl.float32)
    target = row.to(tl.int64)[:, None] * PER_TOKEN + slot
    mask = row_mask & (slot < PER_TOKEN)
    tl.store(chosen + target, index, mask=mask)
    tl.store(shares + target, share, mask=mask)
