"""The segments that decisions add to a pass: prompts and canvases, one behind another.

The canvases of a decision, and the prompts of its reads, overwrite each other's entries in its
cache, in each layer once they were read. So one cache serves any number of them.

An exact decision has a pass for each piece of its tokens and for each canvas, so that each product
has the same shape whatever else is served.
"""

from collections.abc import Sequence as Several
from typing import Protocol

from engine.denoise.reader import CanvasStep, ReadCanvas, Reader
from engine.denoise.sampler import SamplerConfig
from engine.messages import Image
from engine.model.diffusion_gemma import DiffusionGemma
from engine.model.kv_cache import KVCache
from engine.model.rows import Segment
from engine.schedule.sequence import Work


class Encode(Protocol):
    """Returns the segment of tokens that are `start` tokens behind those that a cache stores."""

    def __call__(
        self, tokens: list[int], images: tuple[Image, ...] = (), *, start: int = 0
    ) -> Segment: ...


def read_segments(
    work: Work, canvases: Several[ReadCanvas], cache: KVCache, encode: Encode, piece: int | None
) -> list[Segment]:
    """Returns the segments of a decision's work, in the order in which they write its cache.

    If the decision is exact, its tokens are in them too, and all tokens in pieces. The prompts of
    reads then have pieces of `piece` tokens.
    """
    exact, start = work.sequence.boundaries is not None, len(work.tokens)
    segments = _pieces(work, cache.position, encode) if exact else []
    last = None
    for canvas in canvases:
        prompt = canvas.read.prompt
        if canvas.read is not last:
            size = piece if exact and piece is not None else len(prompt)
            segments += [
                encode(prompt[at : at + size], start=start + at)
                for at in range(0, len(prompt), size)
            ]
        behind = start + len(prompt)
        segments.append(Segment(cache, canvas.tokens, causal=False, start=behind))
        last = canvas.read
    return segments


def run_alone(
    model: DiffusionGemma,
    reader: Reader,
    segments: Several[Segment],
    canvases: Several[ReadCanvas],
    sampler: SamplerConfig,
) -> list[CanvasStep]:
    """Run each segment of an exact decision as a pass of its own. Returns its canvases' steps."""
    left, steps = iter(canvases), list[CanvasStep]()
    for segment in segments:
        if segment.causal:
            model.run([segment])
        else:
            canvas = next(left)
            hidden = model.run([segment], canvas.soft_embeddings)
            steps += reader.read(hidden, [canvas], sampler)
    return steps


def _pieces(work: Work, first: int, encode: Encode) -> list[Segment]:
    """Returns the segments of an exact decision's tokens, which end at its boundaries.

    `first` is the position of the first token.
    """
    assert work.sequence.boundaries is not None
    end = first + len(work.tokens)
    ends = [at for at in work.sequence.boundaries if first < at <= end]
    return [
        encode(
            work.tokens[start - first : stop - first],
            tuple(image for image in work.images if start <= image.start < stop),
            start=start - first,
        )
        for start, stop in zip([first, *ends], ends, strict=False)
    ]
