"""The rows of one pass: which segment each belongs to, its position, and which tokens it sees.

Letters: T tokens of a segment, R rows of a pass, S stored and new tokens, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model.attention import causal_mask
from engine.model.kv_cache import KVCache

Spans = list[tuple[int, int]]  # first position and count of each segment


@dataclass(frozen=True)
class ImageRows:
    """The rows of a segment that are one image."""

    start: int  # the first of these rows, counted from the segment's first row
    embeddings: Tensor  # [rows of the image, D]

    @property
    def span(self) -> slice:
        return slice(self.start, self.start + self.embeddings.shape[0])


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one sequence in a pass, which all attend in the same way.

    The tokens of a causal segment are encoded (prefill, commit). Any other segment is a canvas, in
    which each token sees the whole canvas. `start` is the number of tokens that the same pass adds
    between the stored tokens of `cache` and this segment.
    """

    cache: KVCache
    tokens: Tensor  # [T] int64
    causal: bool
    start: int = 0
    images: tuple[ImageRows, ...] = ()  # whole images, of a causal segment


@dataclass(frozen=True)
class PassRows:
    """The rows of all segments of a pass.

    Encoded rows come first, so that they and the canvases' rows are each one slice.
    """

    segments: Sequence[Segment]
    order: list[int]  # the segments' indices, in the order of their rows
    slices: dict[int, slice]  # each segment's rows, by its index
    encoded: int  # the number of rows of causal segments
    masks: dict[tuple[int, int | None], Tensor]  # by a segment's index and window

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "PassRows":
        """Returns the layout of these segments' rows."""
        order = sorted(range(len(segments)), key=lambda number: not segments[number].causal)
        slices, end = {}, 0
        for number in order:
            start, end = end, end + segments[number].tokens.shape[0]
            slices[number] = slice(start, end)
        encoded = sum(segment.tokens.shape[0] for segment in segments if segment.causal)
        return cls(segments, order, slices, encoded, {})

    @property
    def tokens(self) -> Tensor:
        """Returns the rows' tokens, [R] int64."""
        return torch.cat([self.segments[number].tokens for number in self.order])

    @property
    def spans(self) -> Spans:
        """Returns each segment's first position and number of tokens, in the order of the rows."""
        ordered = [self.segments[number] for number in self.order]
        return [(s.cache.position + s.start, s.tokens.shape[0]) for s in ordered]

    def put_images(self, embedded: Tensor) -> None:
        """Overwrite the images' rows of `embedded` [R, D] with the images' unscaled embeddings."""
        for number, segment in enumerate(self.segments):
            for image in segment.images:
                embedded[self.slices[number]][image.span] = image.embeddings

    def mask(
        self, number: int, seen: int, window: int | None, images: Sequence[ImageRows]
    ) -> Tensor:
        """Returns the mask [T, S] bool of a causal segment, where S is `seen`.

        The mask is cached, because all layers with this window have the same one. The tokens of an
        image see the whole image, in full layers and, even beyond the window, in sliding ones: as
        in the reference's `generate`, and unlike in Gemma 4.
        """
        key = (number, window)
        if key not in self.masks:
            segment = self.segments[number]
            count = segment.tokens.shape[0]
            mask = causal_mask(seen - count, count, window, segment.tokens.device)
            for image in images:
                mask[:, seen - count :][image.span, image.span] = True
            self.masks[key] = mask
        return self.masks[key]
