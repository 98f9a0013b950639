"""Draws a token for each wanted row, from a group of the vocabulary or from its likeliest tokens.

`group_draw` reads the wanted rows' groups of the embedding where they are, 1.4 MB a row in the
released model. PyTorch's operations would copy the group of every row first. `truncated_draw` makes
the cuts of top-k, top-p and min-p without sorting, and the host does not wait to learn how many
tokens or rows there are. Rows that are not wanted cost nothing.

A program draws for one row. The bias is that of `vocab_statistics`.

Letters: R rows, V vocabulary, G groups of the vocabulary, D hidden size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.dequantise import Scheme, numbers_of_codes
from engine.kernels.vocab_statistics import biased, capped

# Tokens that a program of `truncated_draw` reads at a time. There are few programs, each of which
# waits for every reading, so these are large.
_CHUNK = 4096
_BLOCK_D = 64  # numbers of each token's embedding that a program of `group_draw` reads at a time
_BITS = 3  # of the least kept probability that are found in one reading of the row
_HIGHEST = 27  # a probability is at most 1, whose bits as a float32 are below 2^30


def group_draw(
    mass: Tensor,
    hidden: Tensor,
    embedding: Tensor,
    sharpness: Tensor,
    uniforms: Tensor,
    wanted: Tensor,
    out: Tensor,
    rows: slice,
    *,
    softcap: float,
    scales: Tensor | None = None,
    values: Tensor | None = None,
    factors: Tensor | None = None,
) -> None:
    """Write a token to `out` [R] int64 for some rows, 0 where they are not `wanted` [R] bool.

    First a group is drawn, from its share of mass [R, G] float32, then a token in it, both by the
    inverse CDF at one number a row, uniforms [R] float32. hidden is [R, D], embedding [V, D] of its
    dtype, or int8 or float8_e4m3fn with `scales` [V, 1]. sharpness [R] float32 is
    softcap / temperature.
    """
    scheme: Scheme = "dense"
    if scales is not None:
        scheme = "int8" if embedding.dtype == torch.int8 else "fp8"
    groups, (vocab, size) = mass.shape[1], embedding.shape
    assert embedding.is_contiguous()
    assert hidden.is_contiguous()
    assert mass.is_contiguous()
    _group_kernel[(rows.stop - rows.start,)](
        mass,
        hidden,
        embedding if scheme == "dense" else embedding.view(torch.uint8),
        scales,
        sharpness,
        uniforms,
        wanted,
        values,
        factors,
        out,
        rows.start,
        groups,
        size,
        1.0 / softcap,
        scheme,
        vocab // groups,
        triton.next_power_of_2(groups),
        _BLOCK_D,
        num_warps=8,
    )


@triton.jit(do_not_specialize=["first"])  # type: ignore[untyped-decorator]  # Triton has no types
def _group_kernel(  # type: ignore[no-untyped-def]  # its arguments are not Python's
    mass,
    hidden,
    embedding,
    scales,
    sharpness,
    uniforms,
    wanted,
    values,
    factors,
    out,
    first,
    groups,
    size,
    inverse_softcap,
    SCHEME: tl.constexpr,  # noqa: N803  # Triton's way to write constants
    GROUP: tl.constexpr,  # noqa: N803
    GROUPS_2: tl.constexpr,  # noqa: N803
    BLOCK_D: tl.constexpr,  # noqa: N803
):
    row = first + tl.program_id(0)
    if tl.load(wanted + row) == 0:
        tl.store(out + row, tl.full((), 0, tl.int64))
        return
    numbers = tl.arange(0, GROUPS_2)
    masses = tl.load(mass + row * groups + numbers, mask=numbers < groups, other=0.0)
    masses = masses.to(tl.float64)
    running = tl.cumsum(masses, 0)
    target = tl.load(uniforms + row).to(tl.float64) * tl.max(running, 0)
    group = tl.minimum(tl.sum((running <= target).to(tl.int32), 0), groups - 1)
    own = tl.sum(tl.where(numbers == group, masses, 0.0), 0)
    before = tl.sum(tl.where(numbers == group, running, 0.0), 0) - own
    share = (target - before) / own  # of the group's mass
    token = group * GROUP + tl.arange(0, GROUP)
    lines = embedding + token.to(tl.int64)[:, None] * size
    total = tl.zeros((GROUP, BLOCK_D), tl.float32)
    for begin in range(0, size, BLOCK_D):
        column = begin + tl.arange(0, BLOCK_D)
        inside = column < size
        state = tl.load(hidden + row.to(tl.int64) * size + column, mask=inside, other=0.0)
        part = tl.load(lines + column[None, :], mask=inside[None, :], other=0)
        if SCHEME != "dense":
            part = numbers_of_codes(part, SCHEME, False)
        total += part.to(tl.float32) * state.to(tl.float32)[None, :]
    # Rounded as the logits are of which the group's mass is made.
    raw = tl.sum(total, 1)
    if SCHEME != "dense":
        raw *= 256.0 if SCHEME == "fp8" else 1.0  # makes up for `numbers_of_codes`
        raw = raw.to(hidden.dtype.element_ty).to(tl.float32)
        raw *= tl.load(scales + token).to(tl.float32)
    raw = raw.to(hidden.dtype.element_ty).to(tl.float32)
    x = biased(capped(raw, inverse_softcap), values, factors, token, inverse_softcap)
    probs = tl.exp((x - tl.max(x, 0)) * tl.load(sharpness + row))
    running = tl.cumsum(probs.to(tl.float64), 0)
    index = tl.sum((running <= share * tl.max(running, 0)).to(tl.int32), 0)
    tl.store(out + row, (group * GROUP + tl.minimum(index, GROUP - 1)).to(tl.int64))


def truncated_draw(
    logits: Tensor,
    probs: Tensor,
    sharpness: Tensor,
    uniforms: Tensor,
    wanted: Tensor,
    out: Tensor,
    first: int,
    rows: slice,
    *,
    softcap: float,
    top_k: int,
    top_p: float,
    min_p: float,
    values: Tensor | None = None,
    factors: Tensor | None = None,
) -> None:
    """Write a token to `out` [R] int64 for the `wanted` [R] bool ones of some rows.

    It is the inverse CDF at the row's number, uniforms [R] float32, over the tokens that all cuts
    keep, as `engine/tail/truncated_draw.py` describes them. The `rows` count from row `first`.
    logits and probs begin there: [A, V] of any dtype, and as much room in float32, which is
    overwritten. sharpness [R] float32 is softcap / temperature.
    """
    vocab = logits.shape[1]
    assert logits.is_contiguous()
    assert probs.is_contiguous()
    assert probs.shape == logits.shape
    _truncated_kernel[(rows.stop - rows.start,)](
        logits,
        probs,
        sharpness,
        uniforms,
        wanted,
        values,
        factors,
        out,
        first,
        rows.start,
        vocab,
        1.0 / softcap,
        min(top_k, vocab),
        top_p,
        min_p,
        top_k > 0,
        top_p < 1,
        _CHUNK,
        _BITS,
        _HIGHEST,
        num_warps=16,
    )


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["first", "start", "top_k", "top_p", "min_p"]
)
def _truncated_kernel(  # type: ignore[no-untyped-def]
    logits,
    probs,
    sharpness,
    uniforms,
    wanted,
    values,
    factors,
    out,
    first,
    start,
    vocab,
    inverse_softcap,
    top_k,
    top_p,
    min_p,
    TOP_K: tl.constexpr,  # noqa: N803
    TOP_P: tl.constexpr,  # noqa: N803
    CHUNK: tl.constexpr,  # noqa: N803
    BITS: tl.constexpr,  # noqa: N803
    HIGHEST: tl.constexpr,  # noqa: N803
):
    number = start + tl.program_id(0)
    row = first + number
    if tl.load(wanted + row) == 0:
        return
    line = number.to(tl.int64) * vocab
    peak = tl.full((CHUNK,), -float("inf"), tl.float32)
    for begin in range(0, vocab, CHUNK):
        token = begin + tl.arange(0, CHUNK)
        inside = token < vocab
        raw = tl.load(logits + line + token, mask=inside, other=0.0).to(tl.float32)
        x = capped(raw, inverse_softcap)
        x = biased(x, values, factors, tl.minimum(token, vocab - 1), inverse_softcap)
        tl.store(probs + line + token, x, mask=inside)
        peak = tl.maximum(peak, tl.where(inside, x, -float("inf")))
    best = tl.max(peak, 0)
    sharp = tl.load(sharpness + row)
    tl.debug_barrier()  # other threads read what these have written
    mass = tl.zeros((CHUNK,), tl.float32)
    for begin in range(0, vocab, CHUNK):
        token = begin + tl.arange(0, CHUNK)
        inside = token < vocab
        x = tl.load(probs + line + token, mask=inside, other=-float("inf"))
        prob = tl.exp((x - best) * sharp)
        tl.store(probs + line + token, prob, mask=inside)
        mass += tl.where(inside, prob, 0.0)
    tl.debug_barrier()
    total = tl.sum(mass.to(tl.float64), 0)
    least = tl.full((), 0, tl.int32)  # bits of the least kept probability
    if TOP_K:
        least = _least(probs + line, vocab, top_k.to(tl.float64), True, CHUNK, BITS, HIGHEST)
        if TOP_P:
            # Of equals at the cut, only as many count as make up k.
            over = tl.zeros((CHUNK,), tl.float32)
            count = tl.zeros((CHUNK,), tl.int32)
            for begin in range(0, vocab, CHUNK):
                token = begin + tl.arange(0, CHUNK)
                prob = tl.load(probs + line + token, mask=token < vocab, other=0.0)
                above = prob.to(tl.int32, bitcast=True) > least
                over += tl.where(above, prob, 0.0)
                count += above.to(tl.int32)
            equal = (top_k - tl.sum(count, 0)).to(tl.float64)
            cut = least.to(tl.float32, bitcast=True).to(tl.float64)
            total = tl.sum(over.to(tl.float64), 0) + equal * cut
    if TOP_P:
        target = total * top_p
        nucleus = _least(probs + line, vocab, target, False, CHUNK, BITS, HIGHEST)
        least = tl.maximum(least, nucleus)
    # The likeliest token, whose probability is exp(0), always is kept.
    least = tl.minimum(least, tl.full((), 0x3F800000, tl.int32))
    cut = tl.maximum(least.to(tl.float32, bitcast=True), min_p)
    kept = tl.full((), 0.0, tl.float64)
    for begin in range(0, vocab, CHUNK):
        kept += _kept(probs + line, begin, vocab, cut, CHUNK)
    target = tl.load(uniforms + row).to(tl.float64) * kept
    # The chunk in which the running sum first exceeds the target, and the sum before it.
    running = tl.full((), 0.0, tl.float64)
    below = tl.full((), 0.0, tl.float64)
    chunk = tl.full((), 0, tl.int32)
    for begin in range(0, vocab, CHUNK):
        mine = _kept(probs + line, begin, vocab, cut, CHUNK)
        here = (running <= target) & (running + mine > target)
        below = tl.where(here, running, below)
        chunk = tl.where(here, begin, chunk)
        running += mine
    within = tl.arange(0, CHUNK)
    prob = tl.load(probs + line + chunk + within, mask=chunk + within < vocab, other=0.0)
    prob = tl.where(prob >= cut, prob, 0.0)
    index = tl.sum((below + tl.cumsum(prob.to(tl.float64), 0) <= target).to(tl.int32), 0)
    last = tl.max(tl.where(prob > 0, within, 0), 0)
    tl.store(out + row, (chunk + tl.minimum(index, last)).to(tl.int64))


@triton.jit  # type: ignore[untyped-decorator]
def _kept(line, begin, vocab, cut, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Returns the sum of a chunk's probabilities from `cut` on, float64."""
    token = begin + tl.arange(0, CHUNK)
    prob = tl.load(line + token, mask=token < vocab, other=0.0)
    return tl.sum(tl.where(prob >= cut, prob, 0.0).to(tl.float64), 0)


@triton.jit  # type: ignore[untyped-decorator]
def _least(  # type: ignore[no-untyped-def]
    line,
    vocab,
    target,
    COUNT: tl.constexpr,  # noqa: N803
    CHUNK: tl.constexpr,  # noqa: N803
    BITS: tl.constexpr,  # noqa: N803
    HIGHEST: tl.constexpr,  # noqa: N803
):
    """Returns the bits of the largest number such that those from it on reach the target.

    It is their sum that has to, or with COUNT their number. Positive floats are ordered like their
    bits, of which each reading of the row finds BITS.
    """
    least = tl.full((), 0, tl.int32)
    steps = tl.arange(0, 1 << BITS)
    for each in tl.static_range(0, HIGHEST + 1, BITS):
        pivots = least + (steps << (HIGHEST - each))
        reached = tl.zeros((CHUNK, 1 << BITS), tl.float32)
        for begin in range(0, vocab, CHUNK):
            token = begin + tl.arange(0, CHUNK)
            prob = tl.load(line + token, mask=token < vocab, other=-1.0)
            bits = prob.to(tl.int32, bitcast=True)  # negative where there is no token
            above = bits[:, None] >= pivots[None, :]
            reached += tl.where(above, 1.0 if COUNT else prob[:, None], 0.0)
        enough = tl.sum(reached.to(tl.float64), 0) >= target
        # The sums fall with the pivots, the first of which always suffices.
        taken = tl.maximum(tl.sum(enough.to(tl.int32), 0) - 1, 0)
        least += taken << (HIGHEST - each)
    return least
