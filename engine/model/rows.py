"""The rows of one pass: of which sequences they are, where they stand, what they may see.

Letters: T tokens of a segment, D hidden size.
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
    """PassRows of a segment that are an image, and the embeddings [T, D] that it has there."""

    start: int  # the first of them, from the segment's beginning
    embeddings: Tensor

    @property
    def span(self) -> slice:
        return slice(self.start, self.start + self.embeddings.shape[0])


@dataclass(frozen=True)
class Segment:
    """PassRows of one pass that follow each other in one sequence and attend in one way.

    Causal rows are encoded (prefill, commit); the others are a canvas, each of whose rows sees
    all of it. `start` counts the rows of the same pass between what `cache` holds and these.
    """

    cache: KVCache
    tokens: Tensor  # [T] int64
    causal: bool
    start: int = 0
    images: tuple[ImageRows, ...] = ()  # of a causal segment; each of them whole


@dataclass(frozen=True)
class PassRows:
    """Where each segment has its rows: encoded ones first, so that a kind is a slice."""

    segments: Sequence[Segment]
    order: list[int]  # numbers of the segments, as their rows stand
    slices: dict[int, slice]  # by number
    encoded: int  # rows of causal segments
    masks: dict[tuple[int, int | None], Tensor]  # by number and window

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "PassRows":
        order = sorted(range(len(segments)), key=lambda number: not segments[number].causal)
        slices, end = {}, 0
        for number in order:
            start, end = end, end + segments[number].tokens.shape[0]
            slices[number] = slice(start, end)
        encoded = sum(segment.tokens.shape[0] for segment in segments if segment.causal)
        return cls(segments, order, slices, encoded, {})

    @property
    def tokens(self) -> Tensor:
        return torch.cat([self.segments[number].tokens for number in self.order])

    @property
    def spans(self) -> Spans:
        """Where each segment is, as their rows stand."""
        ordered = [self.segments[number] for number in self.order]
        return [(s.cache.position + s.start, s.tokens.shape[0]) for s in ordered]

    def put_images(self, embedded: Tensor) -> None:
        """Put the images' embeddings, which are not scaled, into the rows' [R, D]."""
        for number, segment in enumerate(self.segments):
            for image in segment.images:
                embedded[self.slices[number]][image.span] = image.embeddings

    def mask(
        self, number: int, seen: int, window: int | None, images: Sequence[ImageRows]
    ) -> Tensor:
        """A causal segment's mask [T, seen], the same for all layers with this window.

        Tokens of one of these images see all of it, however far: in full layers and beyond a
        window, as in the reference's `generate` (and unlike in Gemma 4).
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
