"""Log-probabilities of a block's tokens and of the best others in their places.

By the raw softcapped logits: no bias and a temperature of 1. Walks over the vocabulary in chunks,
as `vocab_tail` does. Letters: R rows, D hidden size, V vocabulary, K best tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.messages import TokenLogprobs
from engine.model.embedding import Embedding, some
from engine.sizing.chunks import VOCAB_CHUNK
from engine.tail.vocab_tail import capped


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms, on the device."""

    tokens: Tensor  # [R] int64
    chosen: Tensor  # [R] float32, of those tokens
    best_tokens: Tensor  # [R, K] int64, best first
    best: Tensor  # [R, K] float32

    def messages(self) -> list[TokenLogprobs]:
        """On the wire. Waits for the device."""
        columns = (self.tokens, self.chosen, self.best_tokens, self.best)
        return [
            TokenLogprobs(token, logprob, list(zip(ids, values, strict=True)))
            for token, logprob, ids, values in zip(*(c.tolist() for c in columns), strict=True)
        ]


def logprobs(
    hidden: Tensor, embedding: Embedding, tokens: Tensor, *, softcap: float, best: int
) -> Logprobs:
    """Of `tokens` [R] int64 and the `best` (0 or more) likeliest, log-softmax over the vocabulary.

    hidden [R, D] in the weights' dtype, embedding [V, D]; sums are added up in float64.
    """
    rows, vocab = hidden.shape[0], embedding.shape[0]
    kept = min(best, vocab)
    total = torch.full((rows,), -torch.inf, dtype=torch.float64, device=hidden.device)
    chosen = torch.zeros(rows, dtype=torch.float32, device=hidden.device)
    values = torch.empty(rows, 0, dtype=torch.float32, device=hidden.device)
    ids = torch.empty(rows, 0, dtype=torch.int64, device=hidden.device)
    for start in range(0, vocab, VOCAB_CHUNK):
        part = some(embedding, slice(start, start + VOCAB_CHUNK))
        logits = capped(hidden, part, softcap).mul_(softcap)
        total = torch.logaddexp(total, logits.logsumexp(-1).double())
        place = tokens - start
        here = (place >= 0) & (place < logits.shape[1])
        found = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
        chosen = torch.where(here, found, chosen)
        more, places = logits.topk(min(kept, logits.shape[1]))
        values, order = torch.cat([values, more], 1).topk(
            min(kept, values.shape[1] + more.shape[1])
        )
        ids = torch.cat([ids, places + start], 1).gather(1, order)
    return Logprobs(
        tokens,
        (chosen - total).float(),
        ids,
        (values - total[:, None]).float(),
    )
