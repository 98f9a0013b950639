"""Draws from the likeliest tokens alone: top-k, top-p and min-p.

Rows hold their logits over the whole vocabulary, which `vocab_tail` never does, because the cut
depends on all of them. On a CPU they are a few rows at a time, on a GPU all rows of a canvas.

Letters: A rows that are drawn for, R canvas positions (rows) of the pass, D hidden size, V
vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.model.embedding import Embedding, products
from engine.sizing.chunks import TRUNCATED_ROWS
from engine.tail.vocab_tail import Bias, apart, capped, inverse_cdf, tensors_of

_ROWS = 16  # at a time; each takes 1 MB in the released vocabulary, and 2 MB in float64
_CANDIDATES = 1024  # likeliest tokens that are tried as the nucleus before all are sorted


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
    min_p: float = 0.0,
    biases: Sequence[Bias] = (),
) -> Tensor:
    """Returns a token for each of `rows`, drawn from the tokens that all cuts keep: [A] int64.

    rows is [A] int64, indices into R. hidden is [R, D] in the weights' dtype, embedding [V, D],
    temperatures and uniforms [R] float32. A top_k of 0, a top_p of 1 and a min_p of 0 keep all
    tokens. The token is the inverse CDF at the row's uniform, over the kept tokens' renormalised
    probabilities in the vocabulary's order.

    The cuts are those of `TopKLogitsWarper`, `TopPLogitsWarper` and `MinPLogitsWarper` in
    transformers, in that order, except that tokens as likely as the last one that the first two
    keep are kept too. Waits for the device.
    """
    drawn = []
    for part in rows.split(_ROWS):  # type: ignore[no-untyped-call]  # torch's split has none
        logits = capped(hidden[part], embedding, softcap)  # [A, V]
        for bias in biases:
            touched = (part >= bias.rows.start) & (part < bias.rows.stop)
            biased = logits[touched]
            bias.apply(biased, slice(None), softcap)
            logits[touched] = biased
        probs = logits.mul_((softcap / temperatures[part])[:, None]).softmax(-1)
        least = least_kept(probs, top_k=top_k, top_p=top_p, min_p=min_p)
        drawn.append(inverse_cdf(probs.where(probs >= least, 0.0), uniforms[part]))
    return torch.cat(drawn)


def triton_truncated_draw(
    hidden: Tensor,
    embedding: Embedding,
    temperatures: Tensor,
    uniforms: Tensor,
    wanted: Tensor,
    drawn: Tensor,
    rows: slice,
    *,
    softcap: float,
    top_k: int,
    top_p: float,
    min_p: float = 0.0,
    biases: Sequence[Bias] = (),
) -> None:
    """Write the tokens of `truncated_draw` to `drawn` [R] int64, by a kernel for GPUs.

    They are written for those of the consecutive `rows` that are `wanted` [R] bool. As the host
    does not know which these are, the logits of all `rows` are computed, in as few products as the
    memory plan has room for. The host does not wait.
    """
    # Imported here because triton is slow to import, and not installed everywhere.
    from engine.kernels import vocab_draw

    sharpness = softcap / temperatures
    for start in range(rows.start, rows.stop, TRUNCATED_ROWS):
        whole = slice(start, min(start + TRUNCATED_ROWS, rows.stop))
        logits = products(hidden[whole], embedding)
        probs = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        for part, bias in apart(biases, whole):
            vocab_draw.truncated_draw(
                logits,
                probs,
                sharpness,
                uniforms,
                wanted,
                drawn,
                start,
                slice(part.start - start, part.stop - start),
                softcap=softcap,
                top_k=top_k,
                top_p=float(top_p),
                min_p=float(min_p),
                **tensors_of(bias),
            )


def least_kept(probs: Tensor, *, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Returns the least probability [A, 1] that a token of probs [A, V] must have to be kept."""
    least = min_p * probs.amax(-1, keepdim=True)
    if top_k or top_p < 1:
        least = torch.maximum(least, _least_of_top(probs, top_k=top_k, top_p=top_p))
    return least


def _least_of_top(probs: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Returns the probability [A, 1] of the least likely token that top-k and top-p keep."""
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
    kept = before < top_p * mass[:, None]
    # The likeliest token always is kept, even if top_p is so small that the product is 0.
    return ordered.gather(1, kept.sum(-1, keepdim=True).clamp(min=1) - 1)
