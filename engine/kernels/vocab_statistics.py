"""One pass over the logits: unnormalised probabilities, and sums of them.

This is the middle of the vocabulary tail on a GPU, between two cuBLAS products. It reads each logit
once and overwrites it with its unnormalised probability. PyTorch's operations would read and write
the [R, V] tensor a dozen times. The host never waits: temperatures and exponent shifts are device
tensors, so that a CUDA graph may hold the kernel.

Letters: R rows, V vocabulary (of a chunk), G groups of `group` tokens.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUPS_A_PROGRAM = 8


class Statistics(NamedTuple):
    """The statistics of each row and group, all [R, G]."""

    mass: Tensor  # float32, the sum of exp(y)
    energy: Tensor  # float32, the sum of y exp(y)
    best: Tensor  # float32, the largest logit
    best_index: Tensor  # int32, its index in the group, the first one of equals


def vocab_statistics(
    logits: Tensor, sharpness: Tensor, shift: Tensor, *, softcap: float, group: int
) -> Statistics:
    """Replace logits [R, V] by exp(y), y = sharpness * (tanh(logit / softcap) - shift).

    Returns the statistics of y and exp(y). logits are contiguous and of any float dtype. V is a
    multiple of `group`, which is a power of two. sharpness (softcap / temperature) and shift are
    [R] float32. With a shift of 1, y is from -2 sharpness to 0, whatever the logits. With the row's
    largest tanh as its shift, no exponential that matters underflows.
    """
    rows, vocab = logits.shape
    assert logits.is_contiguous()
    assert vocab % group == 0
    groups = vocab // group

    def empty(dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, groups, dtype=dtype, device=logits.device)

    out = Statistics(*map(empty, (torch.float32, torch.float32, torch.float32, torch.int32)))
    _kernel[(rows, triton.cdiv(groups, GROUPS_A_PROGRAM))](
        logits, sharpness, shift, *out, groups, 1.0 / softcap, group, GROUPS_A_PROGRAM
    )
    return out


def plain_vocab_statistics(
    logits: Tensor, sharpness: Tensor, shift: Tensor, *, softcap: float, group: int
) -> Statistics:
    """Do the same in plain PyTorch."""
    raw = logits.float().view(logits.shape[0], -1, group)  # [R, G, group]
    best, index = raw.max(-1)
    y = ((raw / softcap).tanh() - shift[:, None, None]) * sharpness[:, None, None]
    probs = y.exp()
    logits.copy_(probs.flatten(1))
    return Statistics(probs.sum(-1), (y * probs).sum(-1), best, index.int())


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _kernel(  # type: ignore[no-untyped-def]  # its arguments are not Python's
    logits,
    sharpness,
    shift,
    mass,
    energy,
    best,
    best_index,
    groups,
    inverse_softcap,
    GROUP: tl.constexpr,  # noqa: N803  # Triton's way to write constants
    GROUPS: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0)
    numbers = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    inside = numbers < groups
    within = tl.arange(0, GROUP)
    # 64 bits: R * V is 2^31 at 8,192 rows of the released vocabulary.
    offsets = row.to(tl.int64) * groups * GROUP + numbers[:, None] * GROUP + within[None, :]
    raw = tl.load(logits + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
    # tanh computed with exp, which every Triton backend has. The absolute error is 1e-7.
    capped = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * raw * inverse_softcap))
    y = (capped - tl.load(shift + row)) * tl.load(sharpness + row)
    probs = tl.exp(y)
    tl.store(logits + offsets, probs.to(logits.dtype.element_ty), mask=inside[:, None])
    out = row * groups + numbers
    tl.store(mass + out, tl.sum(probs, 1), mask=inside)
    tl.store(energy + out, tl.sum(y * probs, 1), mask=inside)
    largest = tl.max(raw, 1)
    tl.store(best + out, largest, mask=inside)
    # The first of equals, as torch.max returns it on a CPU.
    first = tl.min(tl.where(raw == largest[:, None], within[None, :], GROUP - 1), 1)
    tl.store(best_index + out, first, mask=inside)
