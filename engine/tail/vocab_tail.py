"""From hidden states to the statistics and draws that a denoising step needs.

lm_head -> softcap -> temperature -> softmax -> entropy, argmax, sample -> soft embedding.

`vocab_tail` and `draw` process the vocabulary in chunks that stay in the processor's cache, so that
the [R, V] logits never exist. A request's bias is added to each chunk of its rows.
`triton_vocab_tail` and `triton_draw` are for GPUs: the logits exist once, in the weights' dtype,
and one kernel turns them into probabilities, another one draws. A bias is added in the kernels, so
that it costs only its own rows. `plain_vocab_tail` computes the same results in a few lines, with
the whole logits in memory. The tests compare with it.

Letters: R canvas positions (rows), D hidden size, V vocabulary, G groups of the vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.model.embedding import (
    Embedding,
    in_groups,
    mixed,
    picked_products,
    products,
    token_range,
)
from engine.model.experts import group_ends
from engine.sizing.chunks import GATHERED_ROWS, VOCAB_CHUNK, VOCAB_GROUP
from engine.weights.quantization import QuantizedWeight

_SAFE_EXPONENT = 80.0  # exp(-80) is a normal float32


@dataclass(frozen=True)
class Bias:
    """A change of the softcapped logits of consecutive rows, before the temperature.

    Positive logits are divided by `factors`, negative ones multiplied by them. Then `values` are
    added.
    """

    rows: slice
    values: Tensor  # [V] float32, finite
    factors: Tensor | None = None  # [V] float32, finite and above 0; None means 1

    def apply(self, logits: Tensor, tokens: slice | Tensor, softcap: float) -> None:
        """Change `logits` in place: some of the bias' rows, each with the logits of `tokens`.

        logits are divided by the softcap already. tokens index V: a slice of it for all rows, or a
        tensor of the logits' shape.
        """
        if self.factors is not None:
            factors = self.factors[tokens]
            logits.mul_(torch.where(logits > 0, 1 / factors, factors))
        logits.add_(self.values[tokens], alpha=1 / softcap)


@dataclass(frozen=True)
class TailResult:
    """Statistics of the distribution at each position, in one step."""

    argmax: Tensor  # [R] int64
    entropy: Tensor  # [R] float32, nats
    soft_embeddings: Tensor  # [R, D], the mean embedding under the distribution
    group_mass: Tensor  # [R, G] float64 or 32, the unnormalised probability of each group


def vocab_tail(
    hidden: Tensor,
    embedding: Embedding,
    temperatures: Tensor,
    *,
    softcap: float,
    embedding_scale: float,
    biases: Sequence[Bias] = (),
) -> TailResult:
    """Returns the statistics of each row's distribution over the vocabulary.

    It is softmax((softcap * tanh(hidden @ embedding.T / softcap) + bias) / temperature), and soft
    embeddings are multiplied by `embedding_scale`. hidden is [R, D] in the weights' dtype,
    embedding [V, D], temperatures [R] float32 above 0. Between the two products everything is
    float32 (docs/architecture.md says why), and partial sums are added up in float64. The reference
    is `DiffusionGemmaForBlockDiffusion.forward` and `_denoising_step` in transformers.

    Exponents are relative to the largest logit so far, as in an online softmax (Milakov and
    Gimelshein, arXiv 1805.02867). The constant shift softcap / temperature would need no rescaling.
    But it would underflow at temperatures below about 0.3, and biased logits can exceed it. The
    maximum is computed anyway, for the argmax.
    """
    rows, vocab = hidden.shape[0], embedding.shape[0]
    group = _group_size(vocab)
    sharpness = (softcap / temperatures)[:, None]  # [R, 1]
    peak = hidden.new_full((rows,), -torch.inf, dtype=torch.float32)
    argmax = torch.zeros(rows, dtype=torch.int64, device=hidden.device)
    soft = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    masses, energies, peaks = [], [], []  # of each chunk: [R, chunk / group], [R], [R]
    for start in range(0, vocab, VOCAB_CHUNK):
        part = token_range(embedding, slice(start, start + VOCAB_CHUNK))
        logits = capped(hidden, part, softcap)  # [R, chunk]
        for bias in biases:
            bias.apply(logits[bias.rows], slice(start, start + VOCAB_CHUNK), softcap)
        best, index = logits.max(-1)
        argmax = torch.where(best > peak, index + start, argmax)
        last_peak, peak = peak, torch.maximum(best, peak)
        logits.sub_(peak[:, None]).mul_(sharpness)
        probs = logits.exp()
        masses.append(probs.view(rows, -1, group).sum(-1))
        energies.append(torch.linalg.vecdot(logits, probs))
        peaks.append(peak)
        soft.mul_(((last_peak - peak)[:, None] * sharpness).exp())
        soft.add_(mixed(probs, part, hidden.dtype))
    # Each chunk's sums are relative to the peak at that time. Rescale them to the final peak.
    shifts = (torch.stack(peaks, 1) - peak[:, None]).double() * sharpness  # [R, chunks]
    weights = shifts.exp()
    chunk_mass = torch.stack([mass.double().sum(-1) for mass in masses], 1)
    energy = torch.stack(energies, 1) + shifts * chunk_mass
    total = (weights * chunk_mass).sum(-1)
    entropy = total.log() - (weights * energy).sum(-1) / total
    return TailResult(
        argmax=argmax,
        entropy=entropy.clamp_(min=0.0).float(),
        soft_embeddings=(soft * (embedding_scale / total)[:, None]).to(hidden.dtype),
        group_mass=torch.cat([mass * weights[:, i, None] for i, mass in enumerate(masses)], 1),
    )


def triton_vocab_tail(
    hidden: Tensor,
    embedding: Embedding,
    temperatures: Tensor,
    *,
    softcap: float,
    embedding_scale: float,
    least_temperatures: Sequence[tuple[slice, float]],
    biases: Sequence[Bias] = (),
) -> TailResult:
    """Returns the same as `vocab_tail`, by kernels for GPUs.

    It makes a cuBLAS product, one pass over the logits [R, V], and a cuBLAS product.

    `least_temperatures` has the smallest of the `temperatures` of consecutive rows, for all rows
    together. The host knows them without reading the device's tensor. From 2 softcap / 80 on, the
    constant exponent shift softcap / temperature is safe without a bias: no exponent is below -80,
    whose exponential is a normal number. Rows with a lower temperature or a bias have their logits
    read once more before, for their maxima. Other rows neither wait for that nor depend on it.
    """
    # Imported here because triton is slow to import, and not installed everywhere.
    from engine.kernels.vocab_statistics import Statistics, vocab_peaks, vocab_statistics

    logits = products(hidden, embedding)  # [R, V]
    sharpness = softcap / temperatures
    shift = torch.ones_like(sharpness)
    group = _group_size(embedding.shape[0])
    statistics = Statistics.empty(hidden.shape[0], embedding.shape[0] // group, hidden.device)
    spans: list[tuple[slice, Bias | None]] = []  # what one launch computes: rows and their bias
    for span, least in least_temperatures:
        for rows, bias in apart(biases, span):
            is_constant = bias is None and 2 * softcap / least <= _SAFE_EXPONENT
            if is_constant and spans and spans[-1][1] is None and spans[-1][0].stop == rows.start:
                spans[-1] = (slice(spans[-1][0].start, rows.stop), None)
                continue
            if not is_constant:
                vocab_peaks(logits, statistics, rows, softcap=softcap, **tensors_of(bias))
                torch.amax(statistics.best[rows], -1, out=shift[rows])
            spans.append((rows, bias))
    for rows, bias in spans:
        vocab_statistics(
            logits,
            sharpness,
            shift,
            softcap=softcap,
            group=group,
            rows=rows,
            out=statistics,
            **tensors_of(bias),
        )
    total = statistics.mass.sum(-1, dtype=torch.float64)
    entropy = total.log() - statistics.energy.sum(-1, dtype=torch.float64) / total
    best = statistics.best.argmax(-1, keepdim=True)  # [R, 1], a group
    soft = mixed(logits, embedding, hidden.dtype) * (embedding_scale / total)[:, None]
    return TailResult(
        argmax=(best * group + statistics.best_index.gather(1, best)).squeeze(1),
        entropy=entropy.clamp_(min=0.0).float(),
        soft_embeddings=soft.to(hidden.dtype),
        group_mass=statistics.mass,
    )


def apart(biases: Sequence[Bias], rows: slice) -> Iterator[tuple[slice, Bias | None]]:
    """Yields the parts of `rows` in order, each with the only bias of all of its rows, or None.

    Rows that have several biases have their sum, of which at most one may have factors, the first.
    """
    here = [b for b in biases if b.rows.start < rows.stop and b.rows.stop > rows.start]
    bounds = {rows.start, rows.stop}
    for bias in here:
        bounds |= {max(bias.rows.start, rows.start), min(bias.rows.stop, rows.stop)}
    edges = sorted(bounds)
    for start, stop in pairwise(edges):
        part, whole = slice(start, stop), None
        for bias in here:
            if bias.rows.start <= start and stop <= bias.rows.stop:
                assert whole is None or bias.factors is None, "factors come before values"
                whole = (
                    Bias(part, bias.values, bias.factors)
                    if whole is None
                    else Bias(part, whole.values + bias.values, whole.factors)
                )
        yield part, whole


def tensors_of(bias: Bias | None) -> dict[str, Tensor | None]:
    """Returns a bias' tensors as the kernels' arguments."""
    return {} if bias is None else {"values": bias.values, "factors": bias.factors}


def draw(
    result: TailResult,
    hidden: Tensor,
    embedding: Embedding,
    temperatures: Tensor,
    uniforms: Tensor,
    wanted: Tensor,
    *,
    softcap: float,
    biases: Sequence[Bias] = (),
) -> Tensor:
    """Returns a token for each row, drawn from the distribution that `result` describes: [R] int64.

    The draw is the inverse CDF at one number in [0, 1) a row (uniforms [R] float32). First the
    group is drawn, from `result.group_mass`. Then the token in the group is drawn, for which only
    that group's logits are computed again. Rows that are not `wanted` [R] bool get an arbitrary
    token and cost next to nothing. The other arguments are those of `vocab_tail`.
    """
    size = _group_size(embedding.shape[0])
    running = result.group_mass.cumsum(-1, dtype=torch.float64)
    targets = uniforms.double() * running[:, -1]
    groups = torch.searchsorted(running, targets[:, None], right=True)
    groups = groups.clamp_(max=running.shape[1] - 1).where(wanted[:, None], 0)  # [R, 1]
    mass = result.group_mass.gather(1, groups)
    within = (targets[:, None] - running.gather(1, groups) + mass) / mass  # in [0, 1]
    groups = groups.squeeze(1)
    grouped = in_groups(embedding, size)
    if isinstance(grouped, Tensor) and not hidden.is_cuda:
        logits = grouped_products(hidden, grouped, groups)  # [R, size]
    else:
        logits = gathered_products(hidden, grouped, groups)
    logits = logits.float().div_(softcap).tanh_()
    for bias in biases:
        tokens = groups[bias.rows, None] * size + torch.arange(size, device=groups.device)
        bias.apply(logits[bias.rows], tokens, softcap)
    logits.mul_(softcap / temperatures[:, None])
    return groups * size + inverse_cdf(logits.softmax(-1), within.squeeze(1))


def triton_draw(
    result: TailResult,
    hidden: Tensor,
    embedding: Embedding,
    temperatures: Tensor,
    uniforms: Tensor,
    wanted: Tensor,
    *,
    softcap: float,
    biases: Sequence[Bias] = (),
) -> Tensor:
    """Returns the same as `draw`, by a kernel for GPUs, for the result of `triton_vocab_tail`."""
    # Imported here because triton is slow to import, and not installed everywhere.
    from engine.kernels.vocab_draw import group_draw

    codes, scales = embedding, None
    if isinstance(embedding, QuantizedWeight):
        codes, scales = embedding.codes, embedding.scales
    assert isinstance(codes, Tensor)
    drawn = torch.empty(hidden.shape[0], dtype=torch.int64, device=hidden.device)
    sharpness = softcap / temperatures
    for rows, bias in apart(biases, slice(0, hidden.shape[0])):
        group_draw(
            result.group_mass,
            hidden,
            codes,
            sharpness,
            uniforms,
            wanted,
            drawn,
            rows,
            softcap=softcap,
            scales=scales,
            **tensors_of(bias),
        )
    return drawn


def grouped_products(hidden: Tensor, embedding: Tensor, groups: Tensor) -> Tensor:
    """Returns each row's product with its group: [R, D], [G, size, D], [R] -> [R, size].

    A grouped product like that of the experts: no group of the embedding is copied.
    """
    order = groups.argsort(stable=True)
    ends = group_ends(groups[order], embedding.shape[0])
    return torch.empty(
        hidden.shape[0], embedding.shape[1], dtype=hidden.dtype, device=hidden.device
    ).index_copy_(0, order, F.grouped_mm(hidden[order], embedding.mT, offs=ends))


def gathered_products(hidden: Tensor, embedding: Embedding, groups: Tensor) -> Tensor:
    """Returns the same as `grouped_products`, from a copy of each row's group.

    For GPUs and quantised embeddings. On a GPU grouped_mm takes fewer than 1,024 groups (PyTorch's
    GroupMM.cu), and the released vocabulary has 1,024. A few rows at a time limit the memory.
    """
    parts = zip(hidden.split(GATHERED_ROWS), groups.split(GATHERED_ROWS), strict=True)  # type: ignore[no-untyped-call]  # torch's split has none
    return torch.cat([picked_products(h, embedding, g) for h, g in parts])


def plain_vocab_tail(
    hidden: Tensor,
    embedding: Embedding,
    temperatures: Tensor,
    uniforms: Tensor,
    *,
    softcap: float,
    embedding_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns argmax [R], entropy [R], soft embeddings [R, D] and samples [R].

    Holds the whole logits [R, V] in memory. Arguments are those of `vocab_tail` and `draw`.
    """
    logits = capped(hidden, embedding, softcap) * (softcap / temperatures)[:, None]  # [R, V]
    probs = logits.double().softmax(-1)
    soft = mixed(probs, embedding, hidden.dtype) * embedding_scale
    entropy = torch.special.entr(probs).sum(-1).float()
    return logits.argmax(-1), entropy, soft, inverse_cdf(probs, uniforms)


def inverse_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Returns the token at which each row's running sum first exceeds uniform * its whole sum.

    [R, V], [R] -> [R] int64. Using the sum instead of 1 keeps rounding from pushing a draw past the
    last token.
    """
    running = probs.cumsum(-1, dtype=torch.float64)
    targets = uniforms[:, None] * running[:, -1:]
    tokens = torch.searchsorted(running, targets, right=True).squeeze(-1)
    return tokens.clamp_(max=probs.shape[-1] - 1)


def capped(hidden: Tensor, embedding: Embedding, softcap: float) -> Tensor:
    """Returns tanh(logit / softcap), [R, V] float32, of hidden [R, D] and embedding [V, D]."""
    return products(hidden, embedding).float().div_(softcap).tanh_()


def _group_size(vocab: int) -> int:
    """Returns the largest power of two up to VOCAB_GROUP that divides the vocabulary size."""
    return min(VOCAB_GROUP, vocab & -vocab)
