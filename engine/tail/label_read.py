"""A decision's reads at its slots: how likely labels are, and their share of the vocabulary.

The labels' logits are products with their rows of the embedding alone. The whole vocabulary is
needed for one sum a slot, and only at the slots. Everything is of the raw softcapped logits, at a
temperature of 1, as log-probabilities are.

Letters: S slots, D hidden size, V vocabulary, L labels of a canvas, K labels of a slot.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.model.embedding import Embedding, look_up, token_range
from engine.sizing.chunks import GATHERED_ROWS, VOCAB_CHUNK
from engine.tail.vocab_tail import capped


@dataclass(frozen=True)
class VocabSums:
    """The sums over the vocabulary at each slot, of which the labels have a share."""

    log_total: Tensor  # [S] float64, the logarithm of the sum of all exponentials
    argmax: Tensor  # [S] int64, the likeliest token


@dataclass(frozen=True)
class LabelRead:
    """The labels of each slot of one canvas."""

    probabilities: Tensor  # [S, K] float64, of which each row sums to 1; 0 where a slot has fewer
    mass: Tensor  # [S] float64, the labels' share of all probability
    argmax_is_label: Tensor  # [S] bool


def vocab_sums(hidden: Tensor, embedding: Embedding, *, softcap: float) -> VocabSums:
    """Returns the sums over the vocabulary for hidden states [S, D] in the weights' dtype.

    On a CPU the vocabulary is processed in chunks that stay in its cache, and on a GPU in one
    product. A few rows at a time limit the memory.
    """
    parts = [
        _sums(rows, embedding, softcap, embedding.shape[0] if hidden.is_cuda else VOCAB_CHUNK)
        for rows in hidden.split(GATHERED_ROWS)  # type: ignore[no-untyped-call]  # torch's split has none
    ]
    return VocabSums(
        torch.cat([part.log_total for part in parts]), torch.cat([part.argmax for part in parts])
    )


def _sums(hidden: Tensor, embedding: Embedding, softcap: float, chunk: int) -> VocabSums:
    rows = hidden.shape[0]
    total = torch.full((rows,), -torch.inf, dtype=torch.float64, device=hidden.device)
    peak = torch.full((rows,), -torch.inf, dtype=torch.float32, device=hidden.device)
    argmax = torch.zeros(rows, dtype=torch.int64, device=hidden.device)
    for start in range(0, embedding.shape[0], chunk):
        part = token_range(embedding, slice(start, start + chunk))
        logits = capped(hidden, part, softcap).mul_(softcap)
        total = torch.logaddexp(total, logits.logsumexp(-1).double())
        best, index = logits.max(-1)
        argmax = torch.where(best > peak, index + start, argmax)
        peak = torch.maximum(best, peak)
    return VocabSums(total, argmax)


@dataclass(frozen=True)
class Labels:
    """The labels of a canvas' slots, on the device."""

    tokens: Tensor  # [L] int64, each label of the canvas once
    columns: Tensor  # [S, K] int64, the index in `tokens` of each slot's labels
    present: Tensor  # [S, K] bool, whether a slot has so many labels

    @classmethod
    def of(cls, slots: list[list[int]], device: torch.device) -> "Labels":
        """Returns the labels of slots that have these tokens."""
        tokens = sorted({token for labels in slots for token in labels})
        column = {token: index for index, token in enumerate(tokens)}
        most = max(map(len, slots))
        columns = [[column[token] for token in labels] for labels in slots]
        return cls(
            torch.tensor(tokens, device=device),
            torch.tensor([row + [0] * (most - len(row)) for row in columns], device=device),
            torch.tensor([[i < len(row) for i in range(most)] for row in columns], device=device),
        )

    @property
    def of_slots(self) -> Tensor:
        """Returns the labels of each slot, [S, K] int64, with -1 where it has fewer."""
        return self.tokens[self.columns].where(self.present, -1)


def label_read(
    hidden: Tensor, embedding: Embedding, labels: Labels, sums: VocabSums, *, softcap: float
) -> LabelRead:
    """Returns how likely the labels are at the slots of one canvas.

    hidden is [S, D] in the weights' dtype. `sums` are the slots' own.
    """
    rows = look_up(embedding, labels.tokens, hidden.dtype)  # [L, D]
    logits = F.linear(hidden, rows).float().div_(softcap).tanh_().mul_(softcap).double()
    chosen = logits.gather(1, labels.columns).where(labels.present, -torch.inf)  # [S, K]
    mass = (chosen.logsumexp(-1) - sums.log_total).exp().clamp(max=1.0)
    is_label = (labels.of_slots == sums.argmax[:, None]).any(-1)
    return LabelRead(chosen.softmax(-1), mass, is_label)
