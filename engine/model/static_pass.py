"""The denoising pass in fixed shapes, which a CUDA graph can hold.

In `DiffusionGemma.run` the host knows how many tokens each cache stores, and cuts keys and values
to that length. Here these numbers are on the device: where the entries for new keys and values
begin, and which entries attention sees, out of a fixed number of them. The tests check that results
are the same. During the pass the host makes no tensor and never waits.

With PyTorch's attention a mask hides the unseen entries, which cost time all the same, so that
without a graph this form is slower. Triton's attention does not read them. If the layers' other
kernels are Triton's too, all canvases are in the same launches (`engine/model/fused_layer.py`).

This form is only for passes that consist of whole canvases, as most do. Encoded tokens may have any
length.

Letters: N canvases, C positions of each, R = N C rows, S entries of a layer's cache that are
attended to, D hidden size, H query heads, K key-value heads, d head size.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.model.attention import bidirectional_attention
from engine.model.diffusion_gemma import DiffusionGemma, Layer
from engine.model.kv_cache import KVCache
from engine.model.rows import Segment
from engine.weights.quantization import Kernel

Sees = Callable[[Tensor, int], Tensor]  # `_mask` or `_span`
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # queries, keys, values, seen


class StaticPass:
    """The pass and the buffers that it reads. Call `fill` before each `run`."""

    def __init__(self, model: DiffusionGemma, *, canvases: int) -> None:
        """Allocate buffers for up to `canvases` canvases."""
        dimensions = model.dimensions
        self._model = model
        self._canvas = dimensions.canvas_length
        device = model.device

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(canvases, *shape, dtype=dtype, device=device)

        self._tokens = zeros(self._canvas)
        self._soft_embeddings = zeros(self._canvas, dimensions.hidden_size, dtype=model.dtype)
        # One layer of each window represents all of them: they store equally many tokens.
        self._layer_of = {layer.window: index for index, layer in enumerate(dimensions.layers)}
        self._slots = zeros()
        # By window: the index of each canvas' first entry, and the span of those that it sees.
        self._behind = {window: zeros() for window in self._layer_of}
        self._spans = {window: zeros(2) for window in self._layer_of}
        self._ropes = {  # cos and sin of sliding (True) and full layers
            layer.window is not None: (
                zeros(self._canvas, layer.head_size, dtype=model.dtype),
                zeros(self._canvas, layer.head_size, dtype=model.dtype),
            )
            for layer in dimensions.layers
        }
        self._filled: list[list[int] | None] = [None] * canvases  # the host's copy
        for number in range(canvases):
            self._fill_numbers(number, 0, 0, [0] * len(self._layer_of))
        self._sees, self._attention = _attention_of(model.attention_kernel)
        self.any_length = model.attention_kernel == "triton"  # it reads only the entries it sees
        self._fused = self.any_length and model.layer_kernel == "triton"

    def takes(self, segment: Segment) -> bool:
        """Returns whether the segment is a whole canvas that directly follows stored tokens."""
        whole = segment.tokens.shape[0] == self._canvas
        return whole and not segment.causal and segment.start == 0

    def length(self, caches: Sequence[KVCache]) -> int:
        """Returns how many entries a pass behind these caches should attend to.

        If attention reads only the entries that it sees, it is all that a cache can hold, so that
        one graph serves every block. Otherwise it is the needed number, rounded up to a multiple of
        four canvases or of a quarter of the power of two below the number, if that is more. So one
        graph serves many blocks, and in long contexts at most a fifth of the entries are unseen
        because of the rounding.
        """
        if self.any_length:
            return caches[0].capacity + self._canvas
        end = max(cache.position for cache in caches) + self._canvas
        step = max(4 * self._canvas, 1 << (end.bit_length() - 3))
        return -(-end // step) * step

    def fill(self, segments: Sequence[Segment], soft_embeddings: Sequence[Tensor | None]) -> None:
        """Copy each canvas' tokens and self-conditioning [C, D] into the buffers.

        Self-conditioning of None stands for zeros. Also updates how much each cache stores.
        """
        for number, (segment, soft) in enumerate(zip(segments, soft_embeddings, strict=True)):
            self._tokens[number].copy_(segment.tokens)
            if soft is None:
                self._soft_embeddings[number].zero_()
            else:
                self._soft_embeddings[number].copy_(soft)
            cache = segment.cache
            stored = [cache.stored(index) for index in self._layer_of.values()]
            self._fill_numbers(number, cache.number, cache.position, stored)

    def _fill_numbers(self, number: int, slot: int, position: int, stored: list[int]) -> None:
        """Write where a canvas is, if that has changed since the last time.

        It changes once a block. `stored` are the tokens stored by each layer of `_layer_of`.
        """
        numbers = [slot, position, *stored]
        if self._filled[number] == numbers:
            return
        self._filled[number] = numbers
        # Filled, not copied: the host would wait for the device before a copy.
        self._slots[number].fill_(slot)
        for window, count in zip(self._layer_of, stored, strict=True):
            first = 0 if window is None else max(0, count - window + 1)
            self._behind[window][number].fill_(count)
            self._spans[window][number, 0].fill_(first)
            self._spans[window][number, 1].fill_(count + self._canvas)
        end = position + self._canvas
        positions = torch.arange(position, end, dtype=torch.float32, device=self._slots.device)
        for sliding, rope in self._model.ropes_at(positions, self._model.dtype).items():
            for buffer, values in zip(self._ropes[sliding], rope, strict=True):
                buffer[number].copy_(values)

    def run(self, caches: Sequence[KVCache], length: int) -> Tensor:
        """Returns the hidden states [R, D] of the canvases in the buffers, which have these caches.

        Attention has `length` entries, or as many as the layer can hold if that is less.
        """
        model, count = self._model, len(caches)
        tokens, soft = self._tokens[:count].flatten(), self._soft_embeddings[:count].flatten(0, 1)
        norms = model.norms
        if self._fused:
            # Imported here because triton is slow to import, and not installed everywhere.
            from engine.model.fused_layer import begin

            x, normed = begin(model, tokens, soft)
        else:
            x = model.self_conditioning(model.embed(tokens), soft)
            normed = norms[0].forward(x)
        attend = self._attend_together if self._fused else self._attend_one_by_one
        for index, layer in enumerate(model.each_layer()):
            attended = attend(index, layer, normed, caches, length)
            x, normed = layer.finish(x, attended, 0, norms[index + 1])
        return normed

    def _attend_together(
        self, index: int, layer: Layer, normed: Tensor, caches: Sequence[KVCache], _length: int
    ) -> Tensor:
        """Returns one layer's attention [R, D] of all canvases, given its normed input [R, D]."""
        # Imported here because triton is slow to import, and not installed everywhere.
        from engine.model.fused_layer import attend

        count, window = len(caches), self._model.dimensions.layers[index].window
        shared = caches[0].shared[index]
        assert all(cache.shared[index] is shared for cache in caches), "not made together"
        cos, sin = (each[:count].flatten(0, 1) for each in self._ropes[window is not None])
        return attend(
            layer,
            normed,
            (cos, sin),
            shared,
            self._slots[:count],
            self._behind[window][:count],
            self._spans[window][:count],
        )

    def _attend_one_by_one(
        self, index: int, layer: Layer, normed: Tensor, caches: Sequence[KVCache], length: int
    ) -> Tensor:
        """Returns the same with each canvas' cache written and read on its own.

        Unseen entries have to be finite too, and they are: caches start with zeros.
        """
        count, window = len(caches), self._model.dimensions.layers[index].window
        cos, sin = (each[:count].flatten(0, 1) for each in self._ropes[window is not None])
        parts = (
            each.chunk(count, dim=1) for each in layer.attention.project(normed, (cos, sin))
        )
        steps = torch.arange(self._canvas, device=normed.device)
        attended = []
        for number, (queries, new_keys, new_values) in enumerate(zip(*parts, strict=True)):
            keys, values = caches[number].entries(index, length, self._canvas)
            own = self._behind[window][number] + steps
            keys.index_copy_(1, own, new_keys)
            values.index_copy_(1, own, new_values)
            seen = self._sees(self._spans[window][number], keys.shape[1])
            attended.append(self._attention(queries, keys, values, seen))
        return layer.attention.merge(torch.cat(attended, dim=1))

    def synchronize(self) -> None:
        """Wait until the device has run everything that was launched."""
        if self._tokens.device.type == "cuda":
            torch.cuda.synchronize(self._tokens.device)


def _attention_of(kernel: Kernel) -> tuple[Sees, Attention]:
    """Returns this kernel's attention, and the function that tells it which entries are seen."""
    if kernel == "torch":
        return _mask, bidirectional_attention
    # Imported here because triton is slow to import, and not installed everywhere.
    from engine.kernels.prefix_attention import prefix_attention

    return lambda span, _count: span, prefix_attention


def _mask(span: Tensor, count: int) -> Tensor:
    """Returns which of `count` entries are in the span [2], [count] bool."""
    entries = torch.arange(count, device=span.device)
    return (entries >= span[0]) & (entries < span[1])
