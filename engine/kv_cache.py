"""The keys and values of one sequence: allocated once, the canvas' slot at the end.

Every layer's tensors hold what is stored, then room for the tokens of one pass. A pass writes
there; a denoising pass leaves it at that, so the next one overwrites it, and an encoder pass
makes its tokens part of what is stored with `advance`. A sliding layer keeps only the window - 1
tokens that a later token can still see, as the reference's dynamic cache does.

Letters: K key-value heads, S tokens, d head size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerShape:
    """One layer as the cache sees it; `window` is None where every token is kept."""

    kv_heads: int
    head_size: int
    window: int | None


class KVCache:
    """Room for `capacity` stored tokens and `pass_tokens` more that one pass may write."""

    def __init__(
        self,
        layers: tuple[LayerShape, ...],
        *,
        capacity: int,
        pass_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.position = 0  # tokens encoded so far: the position of the next one
        self.capacity = capacity
        self._layers = layers
        self._tensors = []
        for layer in layers:
            kept = capacity if layer.window is None else min(capacity, layer.window - 1)
            shape = (2, layer.kv_heads, kept + pass_tokens, layer.head_size)
            self._tensors.append(torch.zeros(shape, dtype=dtype, device=device))

    @property
    def nbytes(self) -> int:
        """Bytes on the device, all layers together."""
        return sum(tensor.nbytes for tensor in self._tensors)

    def stored(self, window: int | None) -> int:
        """How many tokens a layer with this window holds."""
        return self.position if window is None else min(self.position, window - 1)

    def write(
        self, layer: int, keys: Tensor, values: Tensor, start: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Put [K, T, d] behind what is stored and `start` more; give what these tokens may see.

        That is views of keys and values, [K, seen + T, d]: everything before them, of which a
        sliding layer sees the last window - 1, and themselves.
        """
        window = self._layers[layer].window
        begin = self.stored(window) + start
        end = begin + keys.shape[1]
        both = self._tensors[layer]
        assert end <= both.shape[2], "the pass is larger than the cache was made for"
        both[0, :, begin:end] = keys
        both[1, :, begin:end] = values
        first = 0 if window is None else max(0, begin - (window - 1))
        return both[0, :, first:end], both[1, :, first:end]

    def advance(self, count: int) -> None:
        """Keep the first `count` tokens that the last pass wrote."""
        assert self.position + count <= self.capacity, "the context is longer than the cache"
        for layer, both in zip(self._layers, self._tensors, strict=True):
            if layer.window is None:
                continue
            end = self.stored(layer.window) + count
            kept = min(end, layer.window - 1)
            if kept < end:
                # A copy in between: source and destination may overlap.
                both[:, :, :kept] = both[:, :, end - kept : end].clone()
        self.position += count

    def clear(self) -> None:
        """Forget every token; the memory stays."""
        self.position = 0
