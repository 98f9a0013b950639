"""The reads of one decision inside the worker: which canvases a pass reads. Plain Python.

A decision has a canvas for each of its reads and samples. Each canvas gets its denoising steps, one
a pass, and is read in the last one. A sequence with a decision encodes its prompt as any other, and
then has these canvases instead of blocks.

On a CPU decisions are exact: the same request has the same results to the bit, whatever the pass
does beside it and whatever prefix was kept. The results of a product depend on how many rows it
has, so the rows of an exact decision are never computed together with others, and its prompt is
encoded in pieces that end at the same lengths for each request that begins with the same tokens.
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass, field

import msgspec

from engine.messages import Decision, GenerateRequest, Image, Read, SlotResult


@dataclass(frozen=True)
class CanvasResult:
    """The result of a denoising step of one of a decision's canvases."""

    slots: list[SlotResult]  # empty unless the step was the canvas' last one
    finite: bool = True  # no number behind this result is NaN or infinite; else it means nothing


@dataclass
class Reading:
    """The state of a decision's canvases, which are numbered: each read's samples in a row."""

    decision: Decision
    steps_left: list[int] = field(init=False)
    results: list[list[SlotResult]] = field(init=False)

    def __post_init__(self) -> None:
        canvases = len(self.decision.reads) * self.decision.samples
        self.steps_left = [self.decision.steps] * canvases
        self.results = [[] for _ in range(canvases)]

    @property
    def done(self) -> bool:
        return not any(self.steps_left)

    def read(self, canvas: int) -> Read:
        """Returns what a canvas reads."""
        return self.decision.reads[canvas // self.decision.samples]

    def sample(self, canvas: int) -> int:
        """Returns the number of a canvas among the samples of its read."""
        return canvas % self.decision.samples

    def next(self, most_tokens: int, most_canvases: int) -> tuple[int, ...]:
        """Returns the canvases of the next pass, which encodes their reads' prompts too.

        The samples of a read share its prompt if they are in one pass.
        """
        chosen: list[int] = []
        last: Read | None = None
        for canvas, left in enumerate(self.steps_left):
            read = self.read(canvas)
            tokens = 0 if read is last else len(read.prompt)
            if not left:
                continue
            if tokens > most_tokens or len(chosen) == most_canvases:
                break
            chosen.append(canvas)
            last = read
            most_tokens -= tokens
        return tuple(chosen)

    def tokens(self, canvases: Several[int]) -> int:
        """Returns how many tokens a pass encodes for the prompts of these canvases' reads."""
        reads = {canvas // self.decision.samples for canvas in canvases}
        return sum(len(self.decision.reads[read].prompt) for read in reads)

    def record(self, canvases: Several[int], results: Several[CanvasResult]) -> None:
        """Record a pass that gave each of `canvases` a denoising step."""
        for canvas, result in zip(canvases, results, strict=True):
            self.steps_left[canvas] -= 1
            self.results[canvas] = result.slots


def exact_form(request: GenerateRequest, piece: int) -> tuple[GenerateRequest, tuple[int, ...]]:
    """Returns an exact decision's request, and the lengths at which its encoding may pause.

    The shared prompt then ends at the last of these lengths, and its last tokens belong to each
    read. Its prefixes have a salt of their own, because those of other requests are not exact.
    """
    boundaries = _boundaries(request.images, len(request.prompt), piece)
    end = boundaries[-1] if boundaries else 0
    shared, remainder = request.prompt[:end], request.prompt[end:]
    assert request.decision is not None
    reads = [
        msgspec.structs.replace(read, prompt=[*remainder, *read.prompt])
        for read in request.decision.reads
    ]
    decision = msgspec.structs.replace(request.decision, reads=reads)
    exact = msgspec.structs.replace(
        request, prompt=shared, decision=decision, salt=f"exact {request.salt}"
    )
    return exact, boundaries


def _boundaries(images: Several[Image], length: int, piece: int) -> tuple[int, ...]:
    """Returns the ends of pieces of a prompt, in ascending order, up to its `length`.

    They are the multiples of `piece` that are in no image, and the ends of images. So they depend
    on nothing but the tokens before them.
    """
    inside = {at for image in images for at in range(image.start + 1, image.end)}
    ends = {image.end for image in images}
    multiples = {at for at in range(piece, length + 1, piece) if at not in inside}
    return tuple(sorted(multiples | ends))
