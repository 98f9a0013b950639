"""Attention over a sequence's cached keys and values, and the rotary embedding.

Letters: T tokens of the pass, S stored and new tokens, H query heads, K key-value heads, d head
size. The scale is 1.0: this architecture norms queries and keys instead.

Query heads that share a key-value head are laid along the token axis rather than the keys being
repeated: [H, T, d] -> [K, H/K * T, d]. So a pass reads each key once.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [.., T, d] by cos and sin [T, d], halves paired (x[i], x[i + d/2])."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def bidirectional_attention(
    queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None = None
) -> Tensor:
    """Every query sees every key: [H, T, d], [K, S, d], [K, S, d] -> [H, T, d].

    Or all of them see those keys that are `seen`, [S] bool.
    """
    return _attend(queries, keys, values, None if seen is None else seen[None])


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """The same with a mask [T, S] bool, True where a query sees a key."""
    group = queries.shape[0] // keys.shape[0]
    return _attend(queries, keys, values, mask.repeat(group, 1))


def causal_mask(stored: int, count: int, window: int | None, device: torch.device) -> Tensor:
    """[count, stored + count] bool: new token i, at index stored + i, sees itself and what is
    before it, and of that only the last `window` tokens (itself included) if there is a window.
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
    # Not a view: some of PyTorch's kernels on a GPU give their result transposed.
    return attended.reshape(heads, count, size)
