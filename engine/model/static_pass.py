"""The denoising pass in fixed shapes, which a CUDA graph can hold and a compiler compiles once.

In `DiffusionGemma.run` the host knows how many tokens each cache stores, and cuts keys and values
to that length. Here this number is on the device. The entries for new keys and values are computed
from it, and so are those that attention sees, out of a fixed number of entries. The tests check
that results are the same. With PyTorch's attention a mask hides the unseen entries, which cost time
all the same, so that without a graph or a compiler this form is slower. Triton's attention does not
read them. During the pass the host makes no tensor and never waits.

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

Sees = Callable[[Tensor, int, int | None], Tensor]  # `_seen` or `_seen_span`
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # queries, keys, values, seen


class StaticPass:
    """The pass and the buffers that it reads. Call `fill` before each `run`."""

    def __init__(self, model: DiffusionGemma, *, canvases: int, compiled: bool = False) -> None:
        """Allocate buffers for up to `canvases` canvases.

        If `compiled` is set, the layers are compiled in their first run.
        """
        dimensions = model.dimensions
        self._model = model
        self._canvas = dimensions.canvas_length
        shape, device = (canvases, self._canvas), model.device
        self._tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self._soft_embeddings = torch.zeros(
            *shape, dimensions.hidden_size, dtype=model.dtype, device=device
        )
        # One layer of each window represents all of them: they store equally many tokens.
        self._layer_of = {layer.window: index for index, layer in enumerate(dimensions.layers)}
        # For each canvas: the position of its first token, then the tokens stored by each layer of
        # `_layer_of`.
        columns = 1 + len(self._layer_of)
        self._stored = torch.zeros(canvases, columns, dtype=torch.int64, device=device)
        self._filled = [[0] * columns for _ in range(canvases)]  # the host's copy
        self._sees, self._attention = _attention_of(model.attention_kernel)
        self.any_length = model.attention_kernel == "triton"  # it reads only the entries it sees
        self.compiled = compiled
        self._before, self._after = _before_attention, _after_attention
        if compiled:
            # These two functions, not the whole pass: they are compiled once for each kind of layer
            # instead of for all thirty layers, and they depend neither on caches nor on lengths.
            # With `fullgraph`, a part that cannot be compiled is an error; otherwise it would
            # silently run uncompiled.
            self._before = torch.compile(_before_attention, fullgraph=True)
            self._after = torch.compile(_after_attention, fullgraph=True)

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
            values = [cache.position, *(cache.stored(index) for index in self._layer_of.values())]
            for column, value in enumerate(values):
                if self._filled[number][column] != value:  # once a block
                    # Filled, not copied: the host would wait for the device before a copy.
                    self._stored[number, column].fill_(value)
                    self._filled[number][column] = value

    def run(self, caches: Sequence[KVCache], length: int) -> Tensor:
        """Returns the hidden states [R, D] of the canvases in the buffers, which have these caches.

        Attention has `length` entries, or as many as the layer can hold if that is less.
        """
        model, count = self._model, len(caches)
        x = model.embed(self._tokens[:count].flatten())
        x = model.self_conditioning(x, self._soft_embeddings[:count].flatten(0, 1))
        position, *stored = self._stored[:count].unbind(1)  # [N] each
        ropes = model.ropes_at(self._behind(position).flatten().float(), x.dtype)
        behind = dict(zip(self._layer_of, map(self._behind, stored), strict=True))
        seen: dict[int | None, Tensor] = {}  # by window
        for index, layer in enumerate(model.each_layer()):
            window = model.dimensions.layers[index].window
            entries = [cache.entries(index, length, self._canvas) for cache in caches]
            if window not in seen:
                seen[window] = self._sees(behind[window], entries[0][0].shape[1], window)
            projected = self._before(layer, x, ropes[window is not None])
            attended = _attend(projected, entries, behind[window], seen[window], self._attention)
            x = self._after(layer, x, attended)
        return model.norm.forward(x)

    def synchronize(self) -> None:
        """Wait until the device has run everything that was launched."""
        if self._tokens.device.type == "cuda":
            torch.cuda.synchronize(self._tokens.device)

    def _behind(self, stored: Tensor) -> Tensor:
        """Returns the indices of the C entries behind the stored ones, [N] -> [N, C]."""
        return stored[:, None] + torch.arange(self._canvas, device=stored.device)


def _attention_of(kernel: Kernel) -> tuple[Sees, Attention]:
    """Returns this kernel's attention, and the function that computes which entries it sees."""
    if kernel == "torch":
        return _seen, bidirectional_attention
    # Imported here because triton is slow to import, and not installed everywhere.
    from engine.kernels.prefix_attention import prefix_attention

    return _seen_span, prefix_attention


def _seen(behind: Tensor, count: int, window: int | None) -> Tensor:
    """Returns which of the layer's first `count` entries each canvas sees, [N, count] bool.

    A canvas has the entries with the indices `behind` [N, C]. It sees these and the entries before
    them, or the last window - 1 before them in a sliding layer.
    """
    entries = torch.arange(count, device=behind.device)
    seen = entries <= behind[:, -1:]
    return seen if window is None else seen & (entries > behind[:, :1] - window)


def _seen_span(behind: Tensor, _count: int, window: int | None) -> Tensor:
    """Returns the same as `_seen` in the form [N, 2]: the first seen entry, and the end."""
    end = behind[:, -1:] + 1
    first = torch.zeros_like(end) if window is None else behind[:, :1] - window + 1
    return torch.cat([first.clamp(min=0), end], dim=1)


def _attend(
    projected: tuple[Tensor, Tensor, Tensor],
    entries: Sequence[tuple[Tensor, Tensor]],
    behind: Tensor,
    seen: Tensor,
    attention: Attention,
) -> Tensor:
    """Write the canvases' keys and values into their caches. Returns their attention [H, R, d].

    `projected` are the queries [H, R, d], keys and values [K, R, d] of all canvases. `entries` are
    the keys and values [K, S, d] of each canvas' cache. `behind` [N, C] are the indices of its own
    entries, and `seen` is the result of `_seen` or `_seen_span`. Unseen entries have to be finite
    too, and they are: caches start with zeros.
    """
    parts = (each.chunk(len(entries), dim=1) for each in projected)
    attended = []
    for number, (queries, new_keys, new_values) in enumerate(zip(*parts, strict=True)):
        keys, values = entries[number]
        keys.index_copy_(1, behind[number], new_keys)
        values.index_copy_(1, behind[number], new_values)
        attended.append(attention(queries, keys, values, seen[number]))
    return torch.cat(attended, dim=1)


def _before_attention(
    layer: Layer, x: Tensor, rope: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries [H, R, d], keys [K, R, d] and values [K, R, d] of x [R, D]."""
    return layer.attention.project(layer.attention_norm(x), rope)


def _after_attention(layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
    """Returns the layer's output [R, D], given its input x [R, D] and the attention [H, R, d]."""
    return layer.finish(x, layer.attention.merge(attended), encoded=0)
