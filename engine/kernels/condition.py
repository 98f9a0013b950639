"""The beginning of a pass as one kernel: scaled embeddings, self-conditioning and the first norm.

Letters: R rows, D hidden size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F


def condition(
    embeddings: Tensor,
    conditioning: Tensor,
    next_weight: Tensor,
    *,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Returns norm(`scale` * embeddings + conditioning), [R, D], and the norm of it with a weight.

    The first norm has no weight, and the second has `next_weight` [D]. All are contiguous.
    """
    rows, size = embeddings.shape
    assert conditioning.shape == embeddings.shape
    assert embeddings.is_contiguous()
    assert conditioning.is_contiguous()
    out, normed = torch.empty_like(embeddings), torch.empty_like(embeddings)
    _kernel[(rows,)](
        embeddings,
        conditioning,
        next_weight,
        out,
        normed,
        scale,
        size,
        eps,
        triton.next_power_of_2(size),
        num_warps=8,
    )
    return out, normed


def plain_condition(
    embeddings: Tensor,
    conditioning: Tensor,
    next_weight: Tensor,
    *,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Returns the same in plain PyTorch."""
    shape = embeddings.shape[-1:]
    out = F.rms_norm(embeddings * scale + conditioning, shape, eps=eps)
    return out, F.rms_norm(out, shape, next_weight, eps)


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _kernel(  # type: ignore[no-untyped-def]  # its arguments are not Python's
    embeddings,
    conditioning,
    next_weight,
    out,
    normed,
    scale,
    size,
    eps,
    BLOCK: tl.constexpr,  # noqa: N803  # Triton's way to write constants
):
    offset = tl.program_id(0).to(tl.int64) * size
    column = tl.arange(0, BLOCK)
    mask = column < size
    total = tl.load(embeddings + offset + column, mask=mask, other=0.0).to(tl.float32) * scale
    total += tl.load(conditioning + offset + column, mask=mask, other=0.0).to(tl.float32)
    new = total * tl.rsqrt(tl.sum(total * total, 0) / size + eps)
    new = new.to(out.dtype.element_ty)
    tl.store(out + offset + column, new, mask=mask)
    wide = new.to(tl.float32)
    wide *= tl.rsqrt(tl.sum(wide * wide, 0) / size + eps)
    wide *= tl.load(next_weight + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(normed + offset + column, wide.to(normed.dtype.element_ty), mask=mask)
