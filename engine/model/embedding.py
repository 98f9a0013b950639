"""The token embedding, which is lm_head too: looked up, multiplied with, averaged; in full or not.

A quantised one has 8 bits and one scale a token. That scale commutes with the products, so that
codes are multiplied as they are, an integer or e4m3 being a number of the activations' type: some
tokens' at a time, so that it is never in full. What waits in memory is half as much, what a
product reads and writes is not less.

Letters: R rows, V tokens, D hidden size, G groups of neighbouring tokens.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.sizing.chunks import VOCAB_CHUNK
from engine.weights.quantization import QuantizedWeight

Embedding = Tensor | QuantizedWeight  # [V, D]; quantised in int8 or fp8, a scale a row


def look_up(embedding: Embedding, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """[T] int64 -> [T, D] of this type, which is the embedding's own if it is in full."""
    if isinstance(embedding, QuantizedWeight):
        return embedding.rows(tokens).dequantize(dtype)
    return F.embedding(tokens, embedding)


def some(embedding: Embedding, place: slice) -> Embedding:
    """Of neighbouring tokens."""
    return embedding.rows(place) if isinstance(embedding, QuantizedWeight) else embedding[place]


def products(hidden: Tensor, embedding: Embedding) -> Tensor:
    """Each row's logits before the softcap: [R, D] -> [R, V] of the same type."""
    if not isinstance(embedding, QuantizedWeight):
        return F.linear(hidden, embedding)
    found = hidden.new_empty(hidden.shape[0], embedding.shape[0])
    for place, codes, scales in _widened(embedding, hidden.dtype):
        found[:, place] = F.linear(hidden, codes).float().mul_(scales)
    return found


def mixed(shares: Tensor, embedding: Embedding, dtype: torch.dtype) -> Tensor:
    """Sums of embeddings, as many of each token as its share, multiplied in this type.

    [R, V] -> [R, D] float32.
    """
    if not isinstance(embedding, QuantizedWeight):
        return F.linear(shares.to(dtype), embedding.T).float()
    total = shares.new_zeros(shares.shape[0], embedding.shape[1], dtype=torch.float32)
    for place, codes, scales in _widened(embedding, dtype):
        total += F.linear((shares[:, place].float() * scales).to(dtype), codes.T)
    return total


def in_groups(embedding: Embedding, size: int) -> Embedding:
    """[V, D] -> [G, size, D]."""
    if not isinstance(embedding, QuantizedWeight):
        return embedding.view(-1, size, embedding.shape[1])
    parts = {name: each.view(-1, size, each.shape[1]) for name, each in embedding.tensors().items()}
    return QuantizedWeight.of(embedding.scheme, parts)


def picked_products(hidden: Tensor, embedding: Embedding, groups: Tensor) -> Tensor:
    """Each row's product with its group, of which a copy is made.

    [R, D], [G, size, D] and the groups' numbers [R] -> [R, size].
    """
    if not isinstance(embedding, QuantizedWeight):
        return torch.bmm(embedding[groups], hidden[:, :, None]).squeeze(2)
    picked = embedding.expert(groups)
    logits = torch.bmm(picked.codes.to(hidden.dtype), hidden[:, :, None]).squeeze(2)
    return (logits.float() * picked.scales[..., 0]).to(hidden.dtype)


def _widened(
    embedding: QuantizedWeight, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Of some tokens at a time: which, their codes [P, D] in this type, their scales [P]."""
    assert embedding.scheme in ("int8", "fp8")
    assert embedding.scales.shape[-1] == 1
    for start in range(0, embedding.shape[0], VOCAB_CHUNK):
        place = slice(start, start + VOCAB_CHUNK)
        yield place, embedding.codes[place].to(dtype), embedding.scales[place, 0]
