"""From hidden states to what a denoising step needs of the vocabulary.

lm_head -> softcap -> temperature -> softmax -> entropy, argmax, sample -> soft embedding.
Letters: C canvas positions, D hidden size, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class TailResult:
    """One step's statistics of the distribution at each position."""

    argmax: Tensor  # [C] int64
    entropy: Tensor  # [C] float32, nats
    sample: Tensor  # [C] int64
    soft_embeddings: Tensor  # [C, D], the mean embedding under the distribution


def vocab_tail(
    hidden: Tensor,
    embedding: Tensor,
    uniforms: Tensor,
    *,
    softcap: float,
    temperature: float,
    embedding_scale: float,
) -> TailResult:
    """Statistics of softmax(softcap * tanh(hidden @ embedding.T / softcap) / temperature).

    hidden [C, D] and embedding [V, D] in the weights' dtype, uniforms [C] float32 in [0, 1).
    Everything between the two products is float32, the probabilities of the soft embedding
    included (DESIGN.md says why). The reference is `DiffusionGemmaForBlockDiffusion.forward`
    and `_denoising_step` in transformers.
    """
    logits = F.linear(hidden, embedding).float()  # [C, V]
    logits = (logits / softcap).tanh() * (softcap / temperature)
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    return TailResult(
        argmax=logits.argmax(-1),
        entropy=-(probs * log_probs).sum(-1),
        sample=inverse_cdf(probs, uniforms),
        soft_embeddings=F.linear(probs.to(embedding.dtype), embedding.T) * embedding_scale,
    )


def inverse_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which each row's running sum first exceeds uniform * sum. [C, V], [C] -> [C].

    The sum takes the place of 1, so that rounding can never push a draw past the last token.
    """
    running = probs.cumsum(-1)
    targets = uniforms[:, None] * running[:, -1:]
    tokens = torch.searchsorted(running, targets, right=True).squeeze(-1)
    return tokens.clamp_(max=probs.shape[-1] - 1)
