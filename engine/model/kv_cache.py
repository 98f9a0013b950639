"""The keys and values of one sequence: allocated once, the canvas' slot at the end.

Every layer's tensors hold what is stored, then room for the tokens of one pass. A pass writes
there; a denoising pass leaves it at that, so the next one overwrites it, and an encoder pass
makes its tokens part of what is stored with `advance`. A sliding layer keeps the window - 1 tokens
that a later token can still see, as the reference's dynamic cache does, and some more, so that a
snapshot can be cut back by a few tokens: to where the prompt of a conversation's next turn differs.

Letters: K key-value heads, S tokens, d head size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.sizing.dimensions import LayerShape
from engine.sizing.kv import kept_tokens, scratch_elements, stored_shape

_ALIGNED = 16  # elements to which attention kernels on a GPU want the rows of a mask aligned


@dataclass(frozen=True)
class Snapshot:
    """A copy of what a cache held: of `position` tokens, the last ones in sliding layers."""

    position: int
    shortest: int  # the least number of tokens, other than none, to which it can be restored
    tensors: list[Tensor]  # each layer's keys and values, [2, K, stored, d]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


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
        slack: int = 0,
    ) -> None:
        """`slack` is how many tokens more than a sliding layer needs are kept of it."""
        self.position = 0  # tokens encoded so far: the position of the next one
        self.capacity = capacity
        self._layers = layers
        self._slack = slack
        self._held = [0] * len(layers)  # tokens that each layer has, the last of `position`
        self._tensors = []
        for layer in layers:
            shape = stored_shape(layer, capacity, pass_tokens, slack)
            self._tensors.append(torch.zeros(shape, dtype=dtype, device=device))
        # What `advance` copies through, so that it never allocates.
        scratch = scratch_elements(layers, capacity, slack)
        self._scratch = torch.empty(scratch, dtype=dtype, device=device)

    def stored(self, layer: int) -> int:
        """How many tokens, the last ones, this layer holds."""
        return self._held[layer]

    def write(
        self, layer: int, keys: Tensor, values: Tensor, start: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Put [K, T, d] behind what is stored and `start` more; give what these tokens may see.

        That is views of keys and values, [K, seen + T, d]: everything before them, of which a
        sliding layer sees the last window - 1, and themselves.
        """
        window = self._layers[layer].window
        begin = self._held[layer] + start
        end = begin + keys.shape[1]
        both = self._tensors[layer]
        assert end <= both.shape[2], "the pass is larger than the cache was made for"
        both[0, :, begin:end] = keys
        both[1, :, begin:end] = values
        first = 0 if window is None else max(0, begin - (window - 1))
        return both[0, :, first:end], both[1, :, first:end]

    def entries(self, layer: int, length: int, count: int) -> tuple[Tensor, Tensor]:
        """Views of the layer's first places, keys and values [K, S, d], to `write` into oneself.

        S does not depend on what is stored: it is `length`, or less where a layer can't have as
        much before and in a pass of `count` tokens.
        """
        both = self._tensors[layer]
        most = self._most(self._layers[layer].window) + count
        end = min(length, -(-most // _ALIGNED) * _ALIGNED, both.shape[2])
        return both[0, :, :end], both[1, :, :end]

    def advance(self, count: int) -> None:
        """Keep the first `count` tokens that the last pass wrote. Allocates nothing."""
        assert self.position + count <= self.capacity, "the context is longer than the cache"
        for index, (layer, both) in enumerate(zip(self._layers, self._tensors, strict=True)):
            end = self._held[index] + count
            kept = self._held[index] = min(end, self._most(layer.window))
            if kept < end:
                # A copy in between: source and destination may overlap.
                source = both[:, :, end - kept : end]
                between = self._scratch[: source.numel()].view(source.shape)
                both[:, :, :kept] = between.copy_(source)
        self.position += count

    @property
    def shortest(self) -> int:
        """The least number of tokens, other than none, to which a snapshot could be restored."""
        shortest = 0
        for layer, held in zip(self._layers, self._held, strict=True):
            lost = self.position - held
            if layer.window is not None and lost:
                shortest = max(shortest, lost + layer.window - 1)
        return shortest

    @property
    def nbytes(self) -> int:
        """Bytes of all that is allocated."""
        return sum(tensor.nbytes for tensor in [*self._tensors, self._scratch])

    @property
    def stored_nbytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(tensor.nbytes for tensor in self._stored())

    def snapshot(self) -> Snapshot:
        """A copy of all that is stored."""
        return Snapshot(self.position, self.shortest, [each.clone() for each in self._stored()])

    def restore(self, snapshot: Snapshot, length: int) -> None:
        """Hold the first `length` tokens of a snapshot of a cache like this, and nothing else."""
        assert snapshot.shortest <= length <= snapshot.position
        self.position = length
        for index, (both, kept) in enumerate(zip(self._tensors, snapshot.tensors, strict=True)):
            held = self._held[index] = kept.shape[2] - (snapshot.position - length)
            both[:, :, :held] = kept[:, :, :held]

    def clear(self) -> None:
        """Forget every token; the memory stays."""
        self.position = 0
        self._held = [0] * len(self._layers)

    def _most(self, window: int | None) -> int:
        """How many tokens a layer with this window may hold."""
        return kept_tokens(window, self.capacity, self._slack)

    def _stored(self) -> list[Tensor]:
        """Views of what each layer holds, [2, K, stored, d]."""
        return [both[:, :, :held] for both, held in zip(self._tensors, self._held, strict=True)]
