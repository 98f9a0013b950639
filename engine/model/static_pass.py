"""The denoising pass in fixed shapes, which a CUDA graph can hold and a compiler compiles once.

In `DiffusionGemma.run` the host knows how many tokens each cache stores, and cuts keys and values
to that length. Here this number is on the device. The entries for new keys and values are computed
from it, and so are those that attention sees, out of a fixed number of entries. The tests check
that results are the same. With PyTorch's attention a mask hides the unseen entries, which cost time
all the same, so that without a graph or a compiler this form is slower. Triton's attention does not
read them. During the pass the host makes no tensor and never waits.

This form is only for passes whose segments all have a canvas' length, as most have: they are
canvases, and canvases behind a block that the same pass commits. A prompt may have any length.

Letters: M segments of a pass, N canvases among them, C positions of each, R = N C rows of
canvases, T = M C rows of all segments, S entries of a layer's cache that are attended to, D hidden
size, H query heads, K key-value heads, d head size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.model.attention import bidirectional_attention, causal_attention
from engine.model.diffusion_gemma import DiffusionGemma, Layer
from engine.model.kv_cache import KVCache
from engine.model.rows import Segment
from engine.weights.quantization import Kernel

# Returns which entries each segment sees. The arguments are the indices of the segments' own
# entries [M, C], the number of entries S, the layer's window, and which segments are causal.
Sees = Callable[[Tensor, int, int | None, Sequence[bool]], list[Tensor]]
# Queries, keys, values, what `Sees` returned for the segment, the layer's window (None if the
# segment is a canvas), and whether the segment is causal.
Attention = Callable[[Tensor, Tensor, Tensor, Tensor, int | None, bool], Tensor]


@dataclass(frozen=True)
class Form:
    """What a graph fixes of a segment: everything but its tokens and how much is stored."""

    cache: KVCache
    causal: bool = False
    start: int = 0  # tokens that the same pass adds between the stored ones and this segment

    @classmethod
    def of(cls, segment: Segment) -> "Form":
        """Returns the form of a segment that has a canvas' length."""
        return cls(segment.cache, segment.causal, segment.start)


Forms = tuple[Form, ...]  # of a pass, in the order in which its segments write to their caches


class StaticPass:
    """The pass and the buffers that it reads. Call `fill` before each `run`."""

    def __init__(self, model: DiffusionGemma, *, canvases: int, compiled: bool = False) -> None:
        """Allocate buffers for `canvases` sequences, all of which may commit or speculate.

        If `compiled` is set, the layers are compiled in their first run.
        """
        dimensions = model.dimensions
        self._model = model
        self._canvas = dimensions.canvas_length
        device = model.device
        # A sequence that speculates has two canvases, with a draft between them.
        self._tokens = torch.zeros(3 * canvases, self._canvas, dtype=torch.int64, device=device)
        self._soft_embeddings = torch.zeros(
            2 * canvases,
            self._canvas,
            dimensions.hidden_size,
            dtype=model.dtype,
            device=device,
        )
        # One layer of each window represents all of them: they store equally many tokens.
        self._layer_of = {layer.window: index for index, layer in enumerate(dimensions.layers)}
        # For each segment: the position of its first token, then the index of this token's entry in
        # each layer of `_layer_of`.
        columns = 1 + len(self._layer_of)
        self._stored = torch.zeros(3 * canvases, columns, dtype=torch.int64, device=device)
        self._filled = [[0] * columns for _ in range(3 * canvases)]  # the host's copy
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

    def takes(self, segments: Sequence[Segment]) -> bool:
        """Returns whether the segments are whole canvases and whole blocks directly before them.

        Such a block is committed by the pass or, if it is a draft, speculated on.
        """
        for number, segment in enumerate(segments):
            if segment.tokens.shape[0] != self._canvas or segment.images:
                return False
            if segment.causal:
                following = segments[number + 1 : number + 2]
                if not any(s.cache is segment.cache and not s.causal for s in following):
                    return False
            committed = number > 0 and segments[number - 1].causal
            if segment.start != (self._canvas if committed else 0):
                return False
        return True

    def length(self, forms: Forms) -> int:
        """Returns how many entries a pass of these forms should attend to.

        If attention reads only the entries that it sees, it is all that a cache can hold, so that
        one graph serves every block. Otherwise it is the needed number, rounded up to a multiple of
        four canvases or of a quarter of the power of two below the number, if that is more. So one
        graph serves many blocks, and in long contexts at most a fifth of the entries are unseen
        because of the rounding.
        """
        behind = self._canvas + max(form.start for form in forms)
        if self.any_length:
            return forms[0].cache.capacity + behind
        end = max(form.cache.position + form.start for form in forms) + self._canvas
        step = max(4 * self._canvas, 1 << (end.bit_length() - 3))
        return -(-end // step) * step

    def fill(self, segments: Sequence[Segment], soft_embeddings: Sequence[Tensor | None]) -> None:
        """Copy the segments' tokens and the canvases' self-conditioning [C, D] into the buffers.

        Self-conditioning of None stands for zeros. Also updates how much each cache stores.
        """
        for number, segment in enumerate(encoded_first(segments)):
            self._tokens[number].copy_(segment.tokens)
            cache = segment.cache
            stored = [cache.position, *(cache.stored(index) for index in self._layer_of.values())]
            for column, value in enumerate(each + segment.start for each in stored):
                if self._filled[number][column] != value:  # once or twice a block
                    # Filled, not copied: the host would wait for the device before a copy.
                    self._stored[number, column].fill_(value)
                    self._filled[number][column] = value
        for buffer, soft in zip(self._soft_embeddings, soft_embeddings, strict=False):
            if soft is None:
                buffer.zero_()
            else:
                buffer.copy_(soft)

    def run(self, forms: Forms, length: int) -> Tensor:
        """Returns the hidden states [R, D] of the canvases in the buffers, which have these forms.

        Attention has `length` entries, or as many as the layer can hold if that is less.
        """
        model, count = self._model, len(forms)
        ordered = encoded_first(forms)
        encoded = self._canvas * sum(form.causal for form in forms)  # rows
        x = model.embed(self._tokens[:count].flatten())
        canvases = sum(not form.causal for form in forms)
        soft_embeddings = self._soft_embeddings[:canvases].flatten(0, 1)
        conditioned = model.self_conditioning(x[encoded:], soft_embeddings)
        x = torch.cat([x[:encoded], conditioned]) if encoded else conditioned
        position, *stored = self._stored[:count].unbind(1)  # [M] each
        ropes = model.ropes_at(self._behind(position).flatten().float(), x.dtype)
        behind = dict(zip(self._layer_of, map(self._behind, stored), strict=True))
        causal = [form.causal for form in ordered]
        reach = self._canvas + max(form.start for form in forms)
        seen: dict[int | None, list[Tensor]] = {}  # by window
        layers = model.each_layer()
        for index, layer in enumerate(layers):
            window = model.dimensions.layers[index].window
            entries = {form: form.cache.entries(index, length, reach) for form in forms}
            if window not in seen:
                keys, _ = entries[forms[0]]
                seen[window] = self._sees(behind[window], keys.shape[1], window, causal)
            projected = self._before(layer, x, ropes[window is not None])
            # The last layer computes only keys and values of encoded rows.
            skipped = encoded if layer is layers[-1] else 0
            attended = self._attend(
                forms, projected, entries, behind[window], seen[window], window, skipped
            )
            x = self._after(layer, x[skipped:], attended, encoded - skipped)
        return model.norm.forward(x)

    def _attend(
        self,
        forms: Forms,
        projected: tuple[Tensor, Tensor, Tensor],
        entries: Mapping[Form, tuple[Tensor, Tensor]],
        behind: Tensor,
        seen: Sequence[Tensor],
        window: int | None,
        skipped: int,
    ) -> Tensor:
        """Write the segments' keys and values into their caches. Returns their attention [H, T, d].

        `projected` are the queries [H, T, d], keys and values [K, T, d] of all segments. `entries`
        are the keys and values [K, S, d] of each segment's cache. `behind` [M, C] are the indices
        of its own entries, and `seen` is what `Sees` returned. Unseen entries have to be finite
        too, and they are: caches start with zeros. The first `skipped` rows have no attention.

        Segments write in the order of `forms`, because a draft overwrites its canvas' entries.
        """
        rows = {form: number for number, form in enumerate(encoded_first(forms))}
        attended: dict[int, Tensor] = {}
        for form in forms:
            number = rows[form]
            span = slice(number * self._canvas, (number + 1) * self._canvas)
            queries, new_keys, new_values = (each[:, span] for each in projected)
            keys, values = entries[form]
            keys.index_copy_(1, behind[number], new_keys)
            values.index_copy_(1, behind[number], new_values)
            if span.start >= skipped:
                own_window = window if form.causal else None
                attended[number] = self._attention(
                    queries, keys, values, seen[number], own_window, form.causal
                )
        return torch.cat([attended[number] for number in sorted(attended)], dim=1)

    def synchronize(self) -> None:
        """Wait until the device has run everything that was launched."""
        if self._tokens.device.type == "cuda":
            torch.cuda.synchronize(self._tokens.device)

    def _behind(self, first: Tensor) -> Tensor:
        """Returns C indices from each first one on, [M] -> [M, C]."""
        return first[:, None] + torch.arange(self._canvas, device=first.device)


def encoded_first(each: Sequence[Segment] | Sequence[Form]) -> list[Any]:
    """Returns a pass' segments or forms in the order of their rows, as in `PassRows`."""
    return sorted(each, key=lambda one: not one.causal)


def _attention_of(kernel: Kernel) -> tuple[Sees, Attention]:
    """Returns this kernel's attention, and the function that computes which entries it sees."""
    if kernel == "torch":
        return _seen, _torch_attention
    # Imported here because triton is slow to import, and not installed everywhere.
    from engine.kernels.prefix_attention import prefix_attention

    def attention(
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        span: Tensor,
        window: int | None,
        causal: bool,
    ) -> Tensor:
        return prefix_attention(queries, keys, values, span, causal=causal, window=window)

    return _seen_span, attention


def _torch_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    seen: Tensor,
    _window: int | None,
    causal: bool,
) -> Tensor:
    attention = causal_attention if causal else bidirectional_attention
    return attention(queries, keys, values, seen)


def _seen(behind: Tensor, count: int, window: int | None, causal: Sequence[bool]) -> list[Tensor]:
    """Returns which of the layer's first `count` entries each segment sees.

    The segments have the entries with the indices `behind` [M, C]. A canvas sees all of its own and
    the entries before them, or the last window - 1 before them in a sliding layer: [count] bool.
    Each token of a causal segment sees its own entry and those before it: [C, count] bool.
    """
    entries, seen = torch.arange(count, device=behind.device), []
    for own, is_causal in zip(behind, causal, strict=True):
        first, last = (own[:, None], own[:, None]) if is_causal else (own[:1], own[-1:])
        mask = entries <= last
        seen.append(mask if window is None else mask & (entries > first - window))
    return seen


def _seen_span(
    behind: Tensor, _count: int, window: int | None, _causal: Sequence[bool]
) -> list[Tensor]:
    """Returns the same as `_seen` in the form [2]: the first entry that is seen, and the end."""
    end = behind[:, -1:] + 1
    first = torch.zeros_like(end) if window is None else behind[:, :1] - window + 1
    return list(torch.cat([first.clamp(min=0), end], dim=1))


def _before_attention(
    layer: Layer, x: Tensor, rope: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries [H, T, d], keys [K, T, d] and values [K, T, d] of x [T, D]."""
    return layer.attention.project(layer.attention_norm(x), rope)


def _after_attention(layer: Layer, x: Tensor, attended: Tensor, encoded: int) -> Tensor:
    """Returns the layer's output [T, D], given its input x [T, D] and the attention [H, T, d].

    The first `encoded` rows are the encoder's.
    """
    return layer.finish(x, layer.attention.merge(attended), encoded)
