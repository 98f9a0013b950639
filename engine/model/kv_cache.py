"""The keys and values of one sequence, allocated once.

Each layer's tensors hold the entries of stored tokens, followed by entries for the tokens of one
pass. Every pass writes the latter. After an encoder pass, `advance` makes its tokens stored ones. A
denoising pass does not call it, so the next pass overwrites its entries.

A sliding layer keeps the window - 1 tokens that a later token can still see, as the reference's
dynamic cache does. It keeps a few more, so that a snapshot can be cut back by that many tokens, to
the point at which the prompt of a conversation's next turn differs.

Caches of equal size can be made together. Then each layer's entries of all of them are one tensor,
so that a kernel finds them by the number of their slot.

Letters: B caches that were made together, K key-value heads, T tokens of a pass, S entries of a
layer, d head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.sizing.dimensions import LayerShape
from engine.sizing.kv import kept_tokens, scratch_elements, stored_shape

_ALIGNED = 16  # elements to which attention kernels on a GPU require a mask's rows to be aligned


@dataclass(frozen=True)
class Snapshot:
    """A copy of a cache's stored entries. Sliding layers have those of the last tokens only."""

    position: int  # tokens that were encoded
    shortest: int  # the least number of tokens, other than none, to which it can be restored
    tensors: list[Tensor]  # each layer's stored keys and values, [2, K, S, d]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def new_caches(
    count: int,
    layers: tuple[LayerShape, ...],
    *,
    capacity: int,
    pass_tokens: int,
    dtype: torch.dtype,
    device: torch.device,
    slack: int = 0,
) -> "list[KVCache]":
    """Returns `count` empty caches that were made together."""
    shared = _entries(count, layers, capacity, pass_tokens, slack, dtype=dtype, device=device)
    return [
        KVCache(
            layers,
            capacity=capacity,
            pass_tokens=pass_tokens,
            dtype=dtype,
            device=device,
            slack=slack,
            shared=shared,
            number=number,
        )
        for number in range(count)
    ]


def _entries(
    count: int,
    layers: tuple[LayerShape, ...],
    capacity: int,
    pass_tokens: int,
    slack: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Tensor]:
    """Returns each layer's entries of `count` caches, [B, 2, K, S, d], which are zeros."""
    shapes = [stored_shape(layer, capacity, pass_tokens, slack) for layer in layers]
    return [torch.zeros(count, *shape, dtype=dtype, device=device) for shape in shapes]


class KVCache:
    """A sequence's KV cache for up to `capacity` stored tokens and `pass_tokens` of one pass."""

    def __init__(
        self,
        layers: tuple[LayerShape, ...],
        *,
        capacity: int,
        pass_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        slack: int = 0,
        shared: Sequence[Tensor] = (),
        number: int = 0,
    ) -> None:
        """Allocate all entries. Sliding layers keep `slack` more tokens than they need.

        If `shared` is given, nothing but a buffer is allocated. It holds each layer's tensor
        [B, 2, K, S, d] of several caches, and this one has the entries with the index `number`.
        """
        self.position = 0  # tokens encoded so far, which is the position of the next one
        self.capacity = capacity
        self._layers = layers
        self._slack = slack
        self._held = [0] * len(layers)  # tokens that each layer stores: the last of `position`
        self.number = number
        self.shared = shared or _entries(
            1, layers, capacity, pass_tokens, slack, dtype=dtype, device=device
        )
        self._tensors = [each[number] for each in self.shared]
        self._token_nbytes = [each[:, :, :1].nbytes for each in self._tensors]  # of each layer
        # `advance` copies through this buffer, so that it never allocates.
        scratch = scratch_elements(layers, capacity, slack)
        self._scratch = torch.empty(scratch, dtype=dtype, device=device)

    def stored(self, layer: int) -> int:
        """Returns the number of tokens that this layer stores. They are the last encoded ones."""
        return self._held[layer]

    def write(
        self, layer: int, keys: Tensor, values: Tensor, start: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Write a pass' keys and values [K, T, d], `start` entries behind the stored ones.

        Returns views of the keys and values that these tokens may see, [K, S, d]: their own, and
        all entries before them (in a sliding layer the last window - 1).
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
        """Returns views of the layer's first S entries, keys and values [K, S, d].

        For callers that write into the views themselves instead of calling `write`. S does not
        depend on how much is stored. It is `length`, or if that is less, the most entries that
        stored tokens and a pass of `count` tokens can fill in this layer.
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
                # Copied through a buffer, because source and destination may overlap.
                source = both[:, :, end - kept : end]
                buffer = self._scratch[: source.numel()].view(source.shape)
                both[:, :, :kept] = buffer.copy_(source)
        self.position += count

    @property
    def shortest(self) -> int:
        """Returns the least number of tokens, other than 0, to which a snapshot can be restored."""
        shortest = 0
        for layer, held in zip(self._layers, self._held, strict=True):
            lost = self.position - held
            if layer.window is not None and lost:
                shortest = max(shortest, lost + layer.window - 1)
        return shortest

    @property
    def nbytes(self) -> int:
        """Returns the bytes of all allocated tensors."""
        return sum(tensor.nbytes for tensor in [*self._tensors, self._scratch])

    @property
    def stored_nbytes(self) -> int:
        """Returns the bytes of the stored entries."""
        return sum(held * size for held, size in zip(self._held, self._token_nbytes, strict=True))

    @property
    def most_stored_nbytes(self) -> int:
        """Returns the bytes of the stored entries of a cache that holds `capacity` tokens."""
        most = (self._most(layer.window) for layer in self._layers)
        return sum(held * size for held, size in zip(most, self._token_nbytes, strict=True))

    def snapshot(self) -> Snapshot:
        """Returns a copy of the stored entries."""
        return Snapshot(self.position, self.shortest, [each.clone() for each in self._stored()])

    def view(self) -> Snapshot:
        """Returns the stored entries without a copy. It is valid until the next change."""
        return Snapshot(self.position, self.shortest, self._stored())

    def restore(self, snapshot: Snapshot, length: int) -> None:
        """Store the first `length` tokens of a snapshot, and no others.

        The snapshot has to be of a cache with the same layers, and `length` from its `shortest` on.
        """
        assert snapshot.shortest <= length <= snapshot.position
        self.position = length
        for index, (both, kept) in enumerate(zip(self._tensors, snapshot.tensors, strict=True)):
            held = self._held[index] = kept.shape[2] - (snapshot.position - length)
            both[:, :, :held] = kept[:, :, :held]

    def clear(self) -> None:
        """Forget all tokens. The memory stays allocated."""
        self.position = 0
        self._held = [0] * len(self._layers)

    def _most(self, window: int | None) -> int:
        """Returns how many tokens a layer with this window may store."""
        return kept_tokens(window, self.capacity, self._slack)

    def _stored(self) -> list[Tensor]:
        """Returns views of each layer's stored entries, [2, K, S, d]."""
        return [both[:, :, :held] for both, held in zip(self._tensors, self._held, strict=True)]
