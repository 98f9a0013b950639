"""The denoising pass in fixed shapes, which a CUDA graph can hold.

In `DiffusionGemma.run` the host knows how many tokens each cache stores, and cuts keys and values
to that length. Here these numbers are on the device: where the entries for new keys and values
begin, and which entries attention sees, out of a fixed number of them. The tests check that results
are the same. During the pass the host makes no tensor and never waits.

With PyTorch's attention a mask hides the unseen entries, which cost time all the same, so that
without a graph this form is slower. Triton's attention does not read them. If the layers' other
kernels are Triton's too, all segments are in the same launches (`engine/model/fused_layer.py`).

This form is only for passes whose segments all have a canvas' length, as most have: they are
canvases, and canvases behind a block that the same pass commits. A prompt may have any length.

Letters: M segments of a pass, N canvases among them, C positions of each, R = N C rows of
canvases, T = M C rows of all segments, S entries of a layer's cache that are attended to, D hidden
size, H query heads, K key-value heads, d head size.
"""

from collections.abc import Callable, Hashable, Sequence
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
# entries [M, C], the spans that they see [M, 2], the number of entries S, the layer's window, and
# which segments are causal.
Sees = Callable[[Tensor, Tensor, int, int | None, Sequence[bool]], list[Tensor]]
# Queries, keys, values, what `Sees` returned for the segment, the layer's window (None if the
# segment is a canvas), and whether the segment is causal.
Attention = Callable[[Tensor, Tensor, Tensor, Tensor, int | None, bool], Tensor]
# By window: the indices of each segment's own entries, [C], and what `Sees` returned for it.
Indices = dict[int | None, list[tuple[Tensor, Tensor]]]


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

    def __init__(self, model: DiffusionGemma, *, canvases: int) -> None:
        """Allocate buffers for `canvases` sequences, all of which may commit or speculate."""
        dimensions = model.dimensions
        self._model = model
        self._canvas = dimensions.canvas_length
        device = model.device
        # A sequence that speculates has two canvases, with a draft between them.
        segments, canvases = 3 * canvases, 2 * canvases

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._tokens = zeros(segments, self._canvas)
        self._soft_embeddings = zeros(
            canvases, self._canvas, dimensions.hidden_size, dtype=model.dtype
        )
        # One layer of each window represents all of them: they store equally many tokens.
        self._layer_of = {layer.window: index for index, layer in enumerate(dimensions.layers)}
        self._slots = zeros(segments)
        # By window: the index of each segment's first entry, and the span of those that it sees.
        self._behind = {window: zeros(segments) for window in self._layer_of}
        self._spans = {window: zeros(segments, 2) for window in self._layer_of}
        self._ropes = {  # cos and sin of sliding (True) and full layers
            shape.window is not None: (
                zeros(segments, self._canvas, shape.head_size, dtype=model.dtype),
                zeros(segments, self._canvas, shape.head_size, dtype=model.dtype),
            )
            for shape in dimensions.layers
        }
        self._filled: list[list[int]] = [[]] * segments  # the host's copy
        for number in range(segments):
            self._fill_numbers(number, [0] * (2 + len(self._layer_of)))
        self._sees, self._attention = _attention_of(model.attention_kernel)
        self.any_length = model.attention_kernel == "triton"  # it reads only the entries it sees
        self._fused = self.any_length and model.layer_kernel == "triton"

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

    def key(self, forms: Forms) -> Hashable:
        """Returns a key that is equal for passes that one graph serves.

        If all segments are in the same launches, buffers say which caches they have and where they
        are in them. So only their number matters, and how many of them are causal.
        """
        if self._together(forms):
            return len(forms), sum(form.causal for form in forms)
        return forms

    def _together(self, forms: Forms) -> bool:
        """Returns whether all segments are in the same launches.

        A draft overwrites the entries of its canvas, so these two can't be.
        """
        apart = len({(form.cache, form.start) for form in forms}) == len(forms)
        return self._fused and apart

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
            numbers = [cache.number, *(each + segment.start for each in stored)]
            if self._filled[number] != numbers:  # once or twice a block
                self._fill_numbers(number, numbers)
        for buffer, soft in zip(self._soft_embeddings, soft_embeddings, strict=False):
            if soft is None:
                buffer.zero_()
            else:
                buffer.copy_(soft)

    def _fill_numbers(self, number: int, numbers: list[int]) -> None:
        """Write where a segment is: its cache's slot, the position of its first token, and the
        index of this token's entry in each layer of `_layer_of`.
        """
        slot, position, *first_entries = self._filled[number] = numbers
        # Filled, not copied: the host would wait for the device before a copy.
        self._slots[number].fill_(slot)
        for window, entry in zip(self._layer_of, first_entries, strict=True):
            self._behind[window][number].fill_(entry)
            self._spans[window][number, 0].fill_(
                0 if window is None else max(0, entry - window + 1)
            )
            self._spans[window][number, 1].fill_(entry + self._canvas)
        end = position + self._canvas
        positions = torch.arange(position, end, dtype=torch.float32, device=self._slots.device)
        for sliding, rope in self._model.ropes_at(positions, self._model.dtype).items():
            for buffer, values in zip(self._ropes[sliding], rope, strict=True):
                buffer[number].copy_(values)

    def run(self, forms: Forms, length: int) -> Tensor:
        """Returns the hidden states [R, D] of the canvases in the buffers, which have these forms.

        Attention has `length` entries, or as many as the layer can hold if that is less.
        """
        model, count = self._model, len(forms)
        encoded = self._canvas * sum(form.causal for form in forms)  # rows
        x, normed = self._begin(self._tokens[:count].flatten(), encoded)
        attend = self._attend_together if self._together(forms) else self._attend_in_turn
        indices: Indices = {}
        layers, norms = model.each_layer(), model.norms
        for index, layer in enumerate(layers):
            # The last layer computes only keys and values of encoded rows.
            skipped = encoded if layer is layers[-1] else 0
            attended = attend(index, layer, normed, forms, length, indices, skipped)
            x, normed = layer.finish(x[skipped:], attended, encoded - skipped, norms[index + 1])
        return normed

    def _begin(self, tokens: Tensor, encoded: int) -> tuple[Tensor, Tensor]:
        """Returns the first layer's input, and its norm, both [T, D]."""
        model = self._model
        first, canvases = model.norms[0], (len(tokens) - encoded) // self._canvas
        soft_embeddings = self._soft_embeddings[:canvases].flatten(0, 1)
        if self._fused:
            # Imported here because triton is slow to import, and not installed everywhere.
            from engine.model.fused_layer import begin

            x, normed = begin(model, tokens[encoded:], soft_embeddings)
        else:
            x = model.self_conditioning(model.embed(tokens[encoded:]), soft_embeddings)
            normed = first.forward(x)
        if encoded:
            embedded = model.embed(tokens[:encoded])
            x, normed = torch.cat([embedded, x]), torch.cat([first.forward(embedded), normed])
        return x, normed

    def _attend_together(
        self,
        index: int,
        layer: Layer,
        normed: Tensor,
        forms: Forms,
        _length: int,
        _indices: Indices,
        skipped: int,
    ) -> Tensor:
        """Returns one layer's attention [T, D], given its normed input [T, D].

        The keys and values of all segments are written before any of them attends. So no entries
        may be those of two segments. The first `skipped` rows have no attention.
        """
        # Imported here because triton is slow to import, and not installed everywhere.
        from engine.model.fused_layer import attend

        count, window = len(forms), self._model.dimensions.layers[index].window
        entries = forms[0].cache.shared[index]
        assert all(form.cache.shared[index] is entries for form in forms), "not made together"
        cos, sin = (each[:count].flatten(0, 1) for each in self._ropes[window is not None])
        return attend(
            layer,
            normed,
            (cos, sin),
            entries,
            self._slots[:count],
            self._behind[window][:count],
            self._spans[window][:count],
            causal=sum(form.causal for form in forms),
            window=window,
            skipped=skipped,
        )

    def _attend_in_turn(
        self,
        index: int,
        layer: Layer,
        normed: Tensor,
        forms: Forms,
        length: int,
        indices: Indices,
        skipped: int,
    ) -> Tensor:
        """Returns the same as `_attend_together` for segments that may have the same entries.

        Each writes its keys and values and attends before the next one does, in the order of
        `forms`. Unseen entries have to be finite, and they are: caches start with zeros. `indices`
        is filled by the first layer of each window.
        """
        count, window = len(forms), self._model.dimensions.layers[index].window
        rope = [each[:count].flatten(0, 1) for each in self._ropes[window is not None]]
        projected = layer.attention.project(normed, (rope[0], rope[1]))
        ordered = encoded_first(forms)
        rows = {form: number for number, form in enumerate(ordered)}
        reach = self._canvas + max(form.start for form in forms)
        attended: dict[int, Tensor] = {}
        for form in forms:
            number = rows[form]
            span = slice(number * self._canvas, (number + 1) * self._canvas)
            queries, new_keys, new_values = (each[:, span] for each in projected)
            keys, values = form.cache.entries(index, length, reach)
            if window not in indices:
                behind = self._behind[window][:count, None] + torch.arange(
                    self._canvas, device=normed.device
                )
                causal = [each.causal for each in ordered]
                spans = self._spans[window][:count]
                sees = self._sees(behind, spans, keys.shape[1], window, causal)
                indices[window] = list(zip(behind, sees, strict=True))
            own, seen = indices[window][number]
            keys.index_copy_(1, own, new_keys)
            values.index_copy_(1, own, new_values)
            if span.start >= skipped:
                own_window = window if form.causal else None
                attended[number] = self._attention(
                    queries, keys, values, seen, own_window, form.causal
                )
        ordered_attended = [attended[number] for number in sorted(attended)]
        return layer.attention.merge(torch.cat(ordered_attended, dim=1))

    def synchronize(self) -> None:
        """Wait until the device has run everything that was launched."""
        if self._tokens.device.type == "cuda":
            torch.cuda.synchronize(self._tokens.device)


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


def _seen(
    behind: Tensor, _spans: Tensor, count: int, window: int | None, causal: Sequence[bool]
) -> list[Tensor]:
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
    _behind: Tensor, spans: Tensor, _count: int, _window: int | None, _causal: Sequence[bool]
) -> list[Tensor]:
    """Returns the same as `_seen` in the form [2]: the first entry that is seen, and the end."""
    return list(spans)
