"""The end of a layer as one kernel, with the norm that begins the next layer.

Each row's experts are added up by their shares. Both MLPs' results are normed and added to the
residual stream, which is multiplied by the layer's scalar.

Letters: R rows, k experts a row, D hidden size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F


def combine(
    x: Tensor,
    dense: Tensor,
    sparse: Tensor,
    indices: Tensor,
    shares: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    scalars: tuple[Tensor, Tensor],
    encoded: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Returns the layer's output [R, D], and the norm of it that the next layer begins with.

    x is the residual stream behind attention, and `dense` the dense MLP's result, both [R, D]. The
    experts' result is `sparse` [R k, D], of which a row has those at `indices` [R, k] int32, with
    its `shares` [R, k] float32. `weights` [D] are those of the norms: behind the dense MLP, behind
    the experts, of both together, and the next layer's. `scalars` [1] are the layer's: the
    encoder's for the first `encoded` rows, then the decoder's. All are contiguous.
    """
    rows, size = x.shape
    assert dense.shape == x.shape
    assert sparse.shape == (indices.numel(), size)
    assert all(each.is_contiguous() for each in (x, dense, sparse, indices, shares))
    out, normed = torch.empty_like(x), torch.empty_like(x)
    _kernel[(rows,)](
        x,
        dense,
        sparse,
        indices,
        shares,
        *weights,
        *scalars,
        out,
        normed,
        encoded,
        size,
        eps,
        indices.shape[1],
        triton.next_power_of_2(size),
        num_warps=8,
    )
    return out, normed


def plain_combine(
    x: Tensor,
    dense: Tensor,
    sparse: Tensor,
    indices: Tensor,
    shares: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    scalars: tuple[Tensor, Tensor],
    encoded: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Returns the same in plain PyTorch."""

    def normed(value: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(value, weight.shape, weight, eps)

    dense_weight, sparse_weight, post_weight, next_weight = weights
    mixed = (sparse[indices] * shares[..., None].to(sparse.dtype)).sum(1)
    both = normed(dense, dense_weight) + normed(mixed, sparse_weight)
    out = x + normed(both, post_weight)
    out[:encoded] *= scalars[0]
    out[encoded:] *= scalars[1]
    return out, normed(out, next_weight)


@triton.jit(do_not_specialize=["encoded"])  # type: ignore[untyped-decorator]  # Triton has no types
def _kernel(  # type: ignore[no-untyped-def]  # its arguments are not Python's
    x,
    dense,
    sparse,
    indices,
    shares,
    dense_weight,
    sparse_weight,
    post_weight,
    next_weight,
    encoder_scalar,
    decoder_scalar,
    out,
    normed,
    encoded,
    size,
    eps,
    PER_TOKEN: tl.constexpr,  # noqa: N803  # Triton's way to write constants
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < size
    mixed = tl.zeros((BLOCK,), tl.float32)
    for number in tl.static_range(PER_TOKEN):
        index = tl.load(indices + row * PER_TOKEN + number).to(tl.int64)
        part = tl.load(sparse + index * size + column, mask=mask, other=0.0).to(tl.float32)
        mixed += part * tl.load(shares + row * PER_TOKEN + number)
    part = tl.load(dense + row * size + column, mask=mask, other=0.0).to(tl.float32)
    total = _normed(part, dense_weight, column, mask, size, eps)
    total += _normed(mixed, sparse_weight, column, mask, size, eps)
    total = _normed(total, post_weight, column, mask, size, eps)
    scalar = tl.load(decoder_scalar)
    if row < encoded:
        scalar = tl.load(encoder_scalar)
    old = tl.load(x + row * size + column, mask=mask, other=0.0).to(tl.float32)
    new = ((old + total) * scalar.to(tl.float32)).to(out.dtype.element_ty)
    tl.store(out + row * size + column, new, mask=mask)
    following = _normed(new.to(tl.float32), next_weight, column, mask, size, eps)
    tl.store(normed + row * size + column, following.to(normed.dtype.element_ty), mask=mask)


@triton.jit
def _normed(values, weight, column, mask, size, eps):  # type: ignore[no-untyped-def]
    """Returns the RMS norm of a row's values, of which those behind its end are 0."""
    factor = tl.rsqrt(tl.sum(values * values, 0) / size + eps)
    return values * factor * tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
