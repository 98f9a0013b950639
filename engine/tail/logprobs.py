"""Log-probabilities of a block's tokens and of the likeliest tokens at their positions.

They are those of the raw softcapped logits, without a bias and at a temperature of 1. The
vocabulary is processed in chunks, as in `vocab_tail`.

Letters: R canvas positions (rows), D hidden size, V vocabulary, K likeliest tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.messages import TokenLogprobs
from engine.model.embedding import Embedding, token_range
from engine.sizing.chunks import VOCAB_CHUNK
from engine.tail.vocab_tail import capped


@dataclass(frozen=True)
class Logprobs:
    """The log-probabilities (natural logarithms) of R positions, as tensors on the device."""

    tokens: Tensor  # [R] int64
    chosen: Tensor  # [R] float32, those of `tokens`
    best_tokens: Tensor  # [R, K] int64, likeliest first
    best: Tensor  # [R, K] float32, those of `best_tokens`

    def messages(self) -> list[TokenLogprobs]:
        """Returns the log-probabilities of each position as messages. Waits for the device."""
        columns = (self.tokens, self.chosen, self.best_tokens, self.best)
        return [
            TokenLogprobs(token, logprob, list(zip(ids, values, strict=True)))
            for token, logprob, ids, values in zip(*(c.tolist() for c in columns), strict=True)
        ]


def logprobs(
    hidden: Tensor, embedding: Embedding, tokens: Tensor, *, softcap: float, best: int
) -> Logprobs:
    """Returns the log-softmax over the vocabulary, at `tokens` and at each row's likeliest tokens.

    hidden is [R, D] in the weights' dtype, embedding [V, D], tokens [R] int64. `best` is the number
    K of likeliest tokens, from 0 on; K is V if it exceeds that. Sums over chunks are float64.
    """
    rows, vocab = hidden.shape[0], embedding.shape[0]
    kept = min(best, vocab)
    total = torch.full((rows,), -torch.inf, dtype=torch.float64, device=hidden.device)
    chosen = torch.zeros(rows, dtype=torch.float32, device=hidden.device)
    values = torch.empty(rows, 0, dtype=torch.float32, device=hidden.device)
    ids = torch.empty(rows, 0, dtype=torch.int64, device=hidden.device)
    for start in range(0, vocab, VOCAB_CHUNK):
        part = token_range(embedding, slice(start, start + VOCAB_CHUNK))
        logits = capped(hidden, part, softcap).mul_(softcap)
        total = torch.logaddexp(total, logits.logsumexp(-1).double())
        column = tokens - start
        in_chunk = (column >= 0) & (column < logits.shape[1])
        picked = logits.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
        chosen = torch.where(in_chunk, picked, chosen)
        more, columns = logits.topk(min(kept, logits.shape[1]))
        values, order = torch.cat([values, more], 1).topk(
            min(kept, values.shape[1] + more.shape[1])
        )
        ids = torch.cat([ids, columns + start], 1).gather(1, order)
    return Logprobs(
        tokens,
        (chosen - total).float(),
        ids,
        (values - total[:, None]).float(),
    )
