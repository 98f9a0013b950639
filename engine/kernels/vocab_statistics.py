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
    best: Tensor  # float32, the largest logit; of rows with a bias, the largest x
    best_index: Tensor  # int32, its index in the group, the first one of equals

    @classmethod
    def empty(cls, rows: int, groups: int, device: torch.device) -> "Statistics":
        types = (torch.float32, torch.float32, torch.float32, torch.int32)
        return cls(*(torch.empty(rows, groups, dtype=each, device=device) for each in types))


def vocab_statistics(
    logits: Tensor,
    sharpness: Tensor,
    shift: Tensor,
    *,
    softcap: float,
    group: int,
    rows: slice | None = None,
    out: Statistics | None = None,
    values: Tensor | None = None,
    factors: Tensor | None = None,
) -> Statistics:
    """Replace logits [R, V] by exp(y), y = sharpness * (x - shift), in some rows or in all.

    x is tanh(logit / softcap). A bias divides it by `factors` [V] float32 if it is positive, and
    multiplies it by them if it is negative. Then it adds `values` [V] float32 / softcap.

    Returns `out`, whose rows get the statistics of y and exp(y), or new tensors. logits are
    contiguous and of any float dtype. V is a multiple of `group`, which is a power of two.
    sharpness (softcap / temperature) and shift are [R] float32. With a shift of 1 and no bias, y is
    from -2 sharpness to 0, whatever the logits. With the row's largest x as its shift, no
    exponential that matters underflows.
    """
    count, vocab = logits.shape
    if out is None:
        out = Statistics.empty(count, vocab // group, logits.device)
    rows = slice(0, count) if rows is None else rows
    _launch(logits, sharpness, shift, out, rows, softcap, values, factors, peaks=False)
    return out


def vocab_peaks(
    logits: Tensor,
    out: Statistics,
    rows: slice,
    *,
    softcap: float,
    values: Tensor | None = None,
    factors: Tensor | None = None,
) -> None:
    """Write each group's largest x to `out.best`, for some rows. The logits stay as they are."""
    _launch(logits, None, None, out, rows, softcap, values, factors, peaks=True)


def _launch(
    logits: Tensor,
    sharpness: Tensor | None,
    shift: Tensor | None,
    out: Statistics,
    rows: slice,
    softcap: float,
    values: Tensor | None,
    factors: Tensor | None,
    *,
    peaks: bool,
) -> None:
    vocab, groups = logits.shape[1], out.mass.shape[1]
    assert logits.is_contiguous()
    assert vocab % groups == 0
    # The first row is a number, not a part of the addresses: these stay aligned for any rows.
    _kernel[(rows.stop - rows.start, triton.cdiv(groups, GROUPS_A_PROGRAM))](
        logits,
        sharpness,
        shift,
        values,
        factors,
        *out,
        rows.start,
        groups,
        1.0 / softcap,
        peaks,
        vocab // groups,
        GROUPS_A_PROGRAM,
    )


def plain_vocab_statistics(
    logits: Tensor,
    sharpness: Tensor,
    shift: Tensor,
    *,
    softcap: float,
    group: int,
    values: Tensor | None = None,
    factors: Tensor | None = None,
) -> Statistics:
    """Returns the same for all rows, in plain PyTorch, with logits of any dtype."""
    raw = logits.float().view(logits.shape[0], -1, group)  # [R, G, group]
    x = (raw / softcap).tanh()
    if factors is not None:
        x = torch.where(x > 0, x / factors.view(-1, group), x * factors.view(-1, group))
    if values is not None:
        x = x + values.view(-1, group) / softcap
    best, index = (raw if values is None else x).max(-1)
    y = (x - shift[:, None, None]) * sharpness[:, None, None]
    probs = y.exp()
    logits.copy_(probs.flatten(1))
    return Statistics(probs.sum(-1), (y * probs).sum(-1), best, index.int())


@triton.jit
def biased(x, values, factors, tokens, inverse_softcap):  # type: ignore[no-untyped-def]
    """Returns x with the bias of these tokens, as `vocab_statistics` describes it.

    values and factors are addresses or None.
    """
    if factors is not None:
        factor = tl.load(factors + tokens)
        x = tl.where(x > 0, x / factor, x * factor)
    if values is not None:
        x += tl.load(values + tokens) * inverse_softcap
    return x


@triton.jit
def capped(raw, inverse_softcap):  # type: ignore[no-untyped-def]
    """Returns tanh(raw / softcap), computed with exp, which every Triton backend has.

    The absolute error is 1e-7.
    """
    return 1.0 - 2.0 / (1.0 + tl.exp(2.0 * raw * inverse_softcap))


@triton.jit(do_not_specialize=["first"])  # type: ignore[untyped-decorator]  # Triton has no types
def _kernel(  # type: ignore[no-untyped-def]  # its arguments are not Python's
    logits,
    sharpness,
    shift,
    values,
    factors,
    mass,
    energy,
    best,
    best_index,
    first,
    groups,
    inverse_softcap,
    PEAKS: tl.constexpr,  # noqa: N803  # Triton's way to write constants
    GROUP: tl.constexpr,  # noqa: N803
    GROUPS: tl.constexpr,  # noqa: N803
):
    row = first + tl.program_id(0)
    numbers = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    inside = numbers < groups
    within = tl.arange(0, GROUP)
    tokens = tl.minimum(numbers, groups - 1)[:, None] * GROUP + within[None, :]
    # 64 bits: R * V is 2^31 at 8,192 rows of the released vocabulary.
    offsets = row.to(tl.int64) * groups * GROUP + tokens
    raw = tl.load(logits + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
    x = biased(capped(raw, inverse_softcap), values, factors, tokens, inverse_softcap)
    out = row * groups + numbers
    if PEAKS:
        tl.store(best + out, tl.max(x, 1), mask=inside)
    else:
        y = (x - tl.load(shift + row)) * tl.load(sharpness + row)
        probs = tl.exp(y)
        tl.store(logits + offsets, probs.to(logits.dtype.element_ty), mask=inside[:, None])
        tl.store(mass + out, tl.sum(probs, 1), mask=inside)
        tl.store(energy + out, tl.sum(y * probs, 1), mask=inside)
        # The softcap makes equals of large logits.
        compared = raw if values is None else x
        largest = tl.max(compared, 1)
        tl.store(best + out, largest, mask=inside)
        # The first of equals, as torch.max returns it on a CPU.
        index = tl.min(tl.where(compared == largest[:, None], within[None, :], GROUP - 1), 1)
        tl.store(best_index + out, index, mask=inside)
