"""Draws from the likeliest tokens alone: top-k and top-p.

For the few rows that ask for it. Some of them at a time hold their logits over the whole
vocabulary, which `vocab_tail` never does: where the cut is depends on all of them.

Letters: A rows that are drawn for, R rows of the pass, D hidden size, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.model.embedding import Embedding
from engine.tail.vocab_tail import Bias, capped, inverse_cdf

_ROWS = 16  # at a time; of 1 MB each in the released vocabulary, and 2 MB in float64
_CANDIDATES = 1024  # tokens in which a nucleus is looked for before all are sorted


def truncated_draw(
    hidden: Tensor,
    embedding: Embedding,
    temperatures: Tensor,
    uniforms: Tensor,
    rows: Tensor,
    *,
    softcap: float,
    top_k: int,
    top_p: float,
    biases: Sequence[Bias] = (),
) -> Tensor:
    """A token for each of `rows` ([A] int64, numbers of rows), from what the cut leaves: [A] int64.

    hidden [R, D] in the weights' dtype, temperatures and uniforms [R] float32, top_k 0 for all
    tokens. Inverse CDF in the vocabulary's order over the renormalised rest. The cuts are those
    of `TopKLogitsWarper` and `TopPLogitsWarper` in transformers, in that order, but that tokens
    which are as likely as the last one left stay too. Waits for the device.
    """
    drawn = []
    for part in rows.split(_ROWS):  # type: ignore[no-untyped-call]  # torch's split has none
        logits = capped(hidden[part], embedding, softcap)  # [A, V]
        for bias in biases:
            touched = (part >= bias.rows.start) & (part < bias.rows.stop)
            logits[touched] += bias.values * (1 / softcap)
        probs = logits.mul_((softcap / temperatures[part])[:, None]).softmax(-1)
        least = least_kept(probs, top_k=top_k, top_p=top_p)
        drawn.append(inverse_cdf(probs.where(probs >= least, 0.0), uniforms[part]))
    return torch.cat(drawn)


def least_kept(probs: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """The probability [A, 1] of the least likely token that the cuts leave of probs [A, V]."""
    vocab = probs.shape[1]
    if top_k:
        ordered = probs.topk(min(top_k, vocab)).values
        mass = ordered.sum(-1, dtype=torch.float64)
    else:
        ordered = probs.topk(min(_CANDIDATES, vocab)).values
        mass = probs.sum(-1, dtype=torch.float64)
        if (ordered.sum(-1, dtype=torch.float64) < top_p * mass).any():
            ordered = probs.sort(descending=True).values
    before = ordered.cumsum(-1, dtype=torch.float64) - ordered
    kept = before < top_p * mass[:, None]  # the first always
    return ordered.gather(1, kept.sum(-1, keepdim=True) - 1)
