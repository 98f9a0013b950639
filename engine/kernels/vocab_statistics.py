"""One pass over the logits: unnormalised probabilities, and what is summed of them.

The middle of the vocabulary tail on a GPU, between two cuBLAS products: it reads each logit once
and writes its unnormalised probability in its place, where PyTorch's operations would read and
write the [R, V] tensor a dozen times. Nothing here waits for the host: temperatures and exponent
shifts are device tensors, so that a CUDA graph may hold it.

Letters: R rows, V vocabulary (of a chunk), G groups of GROUP entries.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUPS_A_PROGRAM = 8


class Statistics(NamedTuple):
    """Of each row and group; all [R, G]."""

    mass: Tensor  # float32, sum of exp(y)
    energy: Tensor  # float32, sum of y exp(y)
    best: Tensor  # float32, largest logit
    place: Tensor  # int32, where it stands in the group, the first one of equals


def vocab_statistics(
    logits: Tensor, sharpness: Tensor, shift: Tensor, *, softcap: float, group: int
) -> Statistics:
    """Replace logits [R, V] by exp(y), y = sharpness * (tanh(logit / softcap) - shift).

    logits in any float type, contiguous, V a multiple of `group`, which is a power of two;
    sharpness [R] (softcap / temperature) and shift [R] float32. With a shift of 1 no exponent is
    above 0 or below -2 sharpness, whatever the logits; with the row's largest tanh none underflows
    that matters.
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
    """The same, in PyTorch's operations."""
    raw = logits.float().view(logits.shape[0], -1, group)  # [R, G, group]
    best, place = raw.max(-1)
    y = ((raw / softcap).tanh() - shift[:, None, None]) * sharpness[:, None, None]
    probs = y.exp()
    logits.copy_(probs.flatten(1))
    return Statistics(probs.sum(-1), (y * probs).sum(-1), best, place.int())


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _kernel(  # type: ignore[no-untyped-def]  # its arguments are not Python's
    logits,
    sharpness,
    shift,
    mass,
    energy,
    best,
    place,
    groups,
    inverse_softcap,
    GROUP: tl.constexpr,  # noqa: N803  # Triton's way to write constants
    GROUPS: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0)
    numbers = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    inside = numbers < groups
    within = tl.arange(0, GROUP)
    # 64 bits: R * V passes 2^31 with 8,192 rows of the released vocabulary.
    places = row.to(tl.int64) * groups * GROUP + numbers[:, None] * GROUP + within[None, :]
    raw = tl.load(logits + places, mask=inside[:, None], other=0.0).to(tl.float32)
    # tanh by way of exp, which every Triton backend has; exact to 1e-7 absolute.
    capped = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * raw * inverse_softcap))
    y = (capped - tl.load(shift + row)) * tl.load(sharpness + row)
    probs = tl.exp(y)
    tl.store(logits + places, probs.to(logits.dtype.element_ty), mask=inside[:, None])
    out = row * groups + numbers
    tl.store(mass + out, tl.sum(probs, 1), mask=inside)
    tl.store(energy + out, tl.sum(y * probs, 1), mask=inside)
    largest = tl.max(raw, 1)
    tl.store(best + out, largest, mask=inside)
    # The first of equals, as torch.max has it on a CPU.
    first = tl.min(tl.where(raw == largest[:, None], within[None, :], GROUP - 1), 1)
    tl.store(place + out, first, mask=inside)
