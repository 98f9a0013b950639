"""The denoising pass in fixed shapes: what a CUDA graph can hold, and a compiler need not redo.

`DiffusionGemma.run` takes from the host where each sequence stands, and cuts keys and values to
what is stored. Here that is a number on the device: new keys and values go to entries computed from
it, attention looks at a fixed number of entries and is told on the device which of them hold
something. The result is the same, as the tests say. Where PyTorch's attention serves, a mask hides
the other entries, which cost time all the same, so that without a graph or a compiler this form is
the slower one; Triton's does not read them. The host makes no tensor in it and waits for nothing.

Only for passes of nothing but whole canvases, as most are: what is encoded has any length.

Letters: N canvases, C positions of each, R = N C rows, S entries of a layer's cache that are looked
at, D hidden size.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.model.attention import bidirectional_attention
from engine.model.diffusion_gemma import DiffusionGemma, Layer
from engine.model.kv_cache import KVCache
from engine.model.rows import Segment
from engine.weights.quantization import Kernel

Sees = Callable[[Tensor, int, int | None], Tensor]
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class StaticPass:
    """The pass, and the buffers that it reads: `fill` before each `run`."""

    def __init__(self, model: DiffusionGemma, *, canvases: int, compiled: bool = False) -> None:
        """For up to so many canvases. `compiled` layers are, at their first run."""
        dimensions = model.dimensions
        self._model = model
        self._canvas = dimensions.canvas_length
        shape, device = (canvases, self._canvas), model.device
        self._tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self._soft_embeddings = torch.zeros(
            *shape, dimensions.hidden_size, dtype=model.dtype, device=device
        )
        # A layer of each window stands for all of them, which hold equally many tokens.
        self._layer_of = {layer.window: index for index, layer in enumerate(dimensions.layers)}
        # Of each canvas the position of its first token, then how many tokens the layers hold.
        columns = 1 + len(self._layer_of)
        self._stored = torch.zeros(canvases, columns, dtype=torch.int64, device=device)
        self._filled = [[0] * columns for _ in range(canvases)]  # the same, where the host sees it
        self._sees, self._attention = _attention_of(model.attention_kernel)
        self._before, self._after = _before_attention, _after_attention
        if compiled:
            # These, not the whole pass: they are compiled once for each kind of layer, not for all
            # thirty, and neither caches nor lengths matter to them. `fullgraph`: an error where a
            # part can't be compiled, rather than a part that is not and no word of it.
            self._before = torch.compile(_before_attention, fullgraph=True)
            self._after = torch.compile(_after_attention, fullgraph=True)

    def takes(self, segment: Segment) -> bool:
        """Whether this part of a pass is a whole canvas, and nothing of the pass before it."""
        whole = segment.tokens.shape[0] == self._canvas
        return whole and not segment.causal and segment.start == 0

    def length(self, segments: Sequence[Segment]) -> int:
        """How many entries a pass of these canvases should look at.

        A multiple of four canvases, and further on of a quarter of the power of two below: so one
        graph serves many blocks, and at most a fifth of the entries are hidden for its sake.
        """
        end = max(segment.cache.position for segment in segments) + self._canvas
        step = max(4 * self._canvas, 1 << (end.bit_length() - 3))
        return -(-end // step) * step

    def fill(self, segments: Sequence[Segment], soft_embeddings: Sequence[Tensor | None]) -> None:
        """Put the canvases' tokens and their self-conditioning [C, D] where the pass reads them."""
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
                    # Filled, not copied: for what the host sends it would wait.
                    self._stored[number, column].fill_(value)
                    self._filled[number][column] = value

    def run(self, caches: Sequence[KVCache], length: int) -> Tensor:
        """Hidden states [R, D] of the canvases that were filled in, whose caches these are.

        `length` entries are looked at, in sliding layers no more than they can hold.
        """
        model, count = self._model, len(caches)
        x = model.embed(self._tokens[:count].flatten())
        x = model.self_conditioning(x, self._soft_embeddings[:count].flatten(0, 1))
        position, *stored = self._stored[:count].unbind(1)  # [N] each
        ropes = model.ropes_at(self._behind(position).flatten().float(), x.dtype)
        behind = dict(zip(self._layer_of, map(self._behind, stored), strict=True))
        seen: dict[int | None, Tensor] = {}
        for index, layer in enumerate(model.each_layer()):
            window = model.dimensions.layers[index].window
            entries = [cache.entries(index, length, self._canvas) for cache in caches]
            if window not in seen:
                seen[window] = self._sees(behind[window], entries[0][0].shape[1], window)
            projected = self._before(layer, x, ropes[window is not None])
            attended = _attend(projected, entries, behind[window], seen[window], self._attention)
            x = self._after(layer, x, attended)
        return model.norm.forward(x)

    def _behind(self, stored: Tensor) -> Tensor:
        """The entries behind what is stored, [N] -> [N, C]."""
        return stored[:, None] + torch.arange(self._canvas, device=stored.device)


def _attention_of(kernel: Kernel) -> tuple[Sees, Attention]:
    """This kernel, and what tells it which entries are seen."""
    if kernel == "torch":
        return _seen, bidirectional_attention
    # Here: triton is there only where it is needed, and slow to import.
    from engine.kernels.prefix_attention import prefix_attention

    return _seen_span, prefix_attention


def _seen(behind: Tensor, count: int, window: int | None) -> Tensor:
    """[N, count] bool: which entries a canvas at entries `behind` [N, C] sees.

    Itself and what is stored before it, of which a sliding layer sees the last window - 1.
    """
    entries = torch.arange(count, device=behind.device)
    seen = entries <= behind[:, -1:]
    return seen if window is None else seen & (entries > behind[:, :1] - window)


def _seen_span(behind: Tensor, _count: int, window: int | None) -> Tensor:
    """The same as [N, 2]: the first place that is seen and the one behind the last."""
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
    """Queries, keys and values of all canvases' rows -> [H, R, d]; fills in their caches.

    `entries` are keys and values [K, S, d] of each; `behind` [N, C] and `seen` [N, S] or [N, 2] as
    above.
    What is hidden has to be finite all the same: it is, for a cache begins as zeros.
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
    """[R, D] -> queries [H, R, d], keys and values [K, R, d]."""
    return layer.attention.project(layer.attention_norm(x), rope)


def _after_attention(layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
    """[R, D] and [H, R, d] -> [R, D]."""
    return layer.finish(x, layer.attention.merge(attended), encoded=0)
