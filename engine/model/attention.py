"""Attention over a sequence's cached keys and values, and the rotary embedding.

The scale is 1.0, because this architecture norms queries and keys instead.

Keys are not repeated for the query heads that share a key-value head. Instead, these query heads
are laid along the token axis: [H, T, d] -> [K, H/K * T, d]. So a pass reads each key once.

Letters: T tokens of the pass, S stored and new tokens, H query heads, K key-value heads, d head
size.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns x [.., T, d] rotated by cos and sin [T, d], with x[i] and x[i + d/2] as pairs."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def bidirectional_attention(
    queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None = None
) -> Tensor:
    """Returns the attention of queries that see every key, or those `seen` [S] bool.

    [H, T, d], [K, S, d], [K, S, d] -> [H, T, d].
    """
    return _attend(queries, keys, values, None if seen is None else seen[None])


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Returns the attention under a mask [T, S] bool, which is True where a query sees a key.

    [H, T, d], [K, S, d], [K, S, d] -> [H, T, d].
    """
    group = queries.shape[0] // keys.shape[0]
    return _attend(queries, keys, values, mask.repeat(group, 1))


def causal_mask(stored: int, count: int, window: int | None, device: torch.device) -> Tensor:
    """Returns the mask of `count` new tokens: [count, stored + count] bool.

    New token i, at index stored + i, sees itself and the tokens before it. With a `window`, it sees
    only the last `window` of these, itself included.
    """
    query = torch.arange(stored, stored + count, device=device)[:, None]
    key = torch.arange(stored + count, device=device)[None, :]
    mask = key <= query
    return mask if window is None else mask & (query - key < window)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    heads, count, size = queries.shape
    grouped = queries.reshape(1, keys.shape[0], -1, size)  # [1, K, H/K * T, d]
    attended = F.scaled_dot_product_attention(
        grouped, keys[None], values[None], attn_mask=mask, scale=1.0
    )
    # reshape, not view: some of PyTorch's GPU kernels return their result transposed.
    return attended.reshape(heads, count, size)
