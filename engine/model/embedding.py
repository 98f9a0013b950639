"""The operations on the token embedding, which is lm_head too, dense or quantised.

A quantised embedding has 8 bits a number and one scale a token. The scale commutes with the
products, so the codes are multiplied without their scales: the activations' dtype holds every int8
and e4m3 number exactly. They are widened to it for one chunk of tokens at a time, so that the
embedding never exists in full. It takes half as much memory, but a product does not read and write
less.

Letters: R rows, T tokens to look up, V tokens of the vocabulary, D hidden size, G groups of
neighbouring tokens, P tokens of a chunk.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.sizing.chunks import VOCAB_CHUNK
from engine.weights.quantization import QuantizedWeight

Embedding = Tensor | QuantizedWeight  # [V, D]; quantised to int8 or fp8, with a scale for each row


def look_up(embedding: Embedding, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the embeddings of tokens [T] int64: [T, D] of `dtype`.

    `dtype` has to be the embedding's own if it is not quantised.
    """
    if isinstance(embedding, QuantizedWeight):
        return embedding.rows(tokens).dequantize(dtype)
    return F.embedding(tokens, embedding)


def token_range(embedding: Embedding, tokens: slice) -> Embedding:
    """Returns the part of the embedding that belongs to neighbouring tokens."""
    return embedding.rows(tokens) if isinstance(embedding, QuantizedWeight) else embedding[tokens]


def products(hidden: Tensor, embedding: Embedding) -> Tensor:
    """Returns each row's logits before the softcap: [R, D] -> [R, V] of the same dtype."""
    if not isinstance(embedding, QuantizedWeight):
        return F.linear(hidden, embedding)
    logits = hidden.new_empty(hidden.shape[0], embedding.shape[0])
    for tokens, codes, scales in _widened(embedding, hidden.dtype):
        logits[:, tokens] = F.linear(hidden, codes).float().mul_(scales)
    return logits


def mixed(shares: Tensor, embedding: Embedding, dtype: torch.dtype) -> Tensor:
    """Returns each row's sum of embeddings, weighted by its shares: [R, V] -> [R, D] float32.

    The product is made in `dtype`.
    """
    if not isinstance(embedding, QuantizedWeight):
        return F.linear(shares.to(dtype), embedding.T).float()
    total = shares.new_zeros(shares.shape[0], embedding.shape[1], dtype=torch.float32)
    for tokens, codes, scales in _widened(embedding, dtype):
        total += F.linear((shares[:, tokens].float() * scales).to(dtype), codes.T)
    return total


def in_groups(embedding: Embedding, size: int) -> Embedding:
    """Returns a view of the embedding in groups of `size` tokens: [V, D] -> [G, size, D]."""
    if not isinstance(embedding, QuantizedWeight):
        return embedding.view(-1, size, embedding.shape[1])
    parts = {name: each.view(-1, size, each.shape[1]) for name, each in embedding.tensors().items()}
    return QuantizedWeight.of(embedding.scheme, parts)


def picked_products(hidden: Tensor, embedding: Embedding, groups: Tensor) -> Tensor:
    """Returns each row's product with its group: [R, D], [G, size, D], [R] -> [R, size].

    `groups` [R] are the groups' indices. Each row's group is copied.
    """
    if not isinstance(embedding, QuantizedWeight):
        return torch.bmm(embedding[groups], hidden[:, :, None]).squeeze(2)
    picked = embedding.expert(groups)
    logits = torch.bmm(picked.codes.to(hidden.dtype), hidden[:, :, None]).squeeze(2)
    return (logits.float() * picked.scales[..., 0]).to(hidden.dtype)


def _widened(
    embedding: QuantizedWeight, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yields each chunk's tokens, their codes [P, D] in `dtype` and their scales [P]."""
    assert embedding.scheme in ("int8", "fp8")
    assert embedding.scales.shape[-1] == 1
    for start in range(0, embedding.shape[0], VOCAB_CHUNK):
        tokens = slice(start, start + VOCAB_CHUNK)
        yield tokens, embedding.codes[tokens].to(dtype), embedding.scales[tokens, 0]
