"""One request inside the worker, and the passes that the model makes for it. Plain Python.

Knows where the request stands and when its answer ends; not who else is served (scheduler) nor
any tensor (denoiser). Prefill and commit are one thing here: tokens that have to be encoded
before the next canvas can be denoised.
"""

import hashlib
from collections.abc import Set
from dataclasses import dataclass, field

from engine.messages import FinishReason, GenerateRequest, Image, TokenLogprobs

WORTH_KEEPING_TOKENS = 256  # a shorter first turn is not worth a pass that ends with it


@dataclass(frozen=True)
class Work:
    """What one pass does for one sequence.

    The encoder reads `tokens` (prefill or commit) into the sequence's KV cache; then, if
    `denoise`, the canvas behind them has a denoising step. Both are one pass through the weights:
    the commit of a block is folded into the first step of the next, and the end of the prompt
    into the first step of all.

    `speculation` is the canvas' draft if the pass shall bet on it: commit it and make the next
    block's first step behind it. The bet is won if the step finishes the block as it stands there.

    `images` are those whose tokens are among `tokens`, each of them whole.
    """

    sequence: "Sequence"
    tokens: list[int]
    denoise: bool
    speculation: list[int] | None = None
    images: tuple[Image, ...] = ()


Pass = list[Work]


@dataclass(frozen=True)
class StepResult:
    """What a denoising step made of a canvas."""

    draft: list[int]  # the argmax canvas
    done: bool  # which is then the block
    nearly: bool = False  # it may well be done after the next step
    logprobs: list[TokenLogprobs] | None = None  # of the draft, if it is done and they are wanted
    next_started: bool = False  # the bet was won: the block is committed, the next has had a step


PassResult = list[StepResult | None]  # of each work of the pass; None where nothing was denoised


@dataclass(frozen=True)
class FinishedBlock:
    """What one block adds to the answer, and whether it ends it."""

    tokens: list[int]
    denoising_steps: int
    speculations: int  # passes that bet on it
    finish_reason: FinishReason | None
    logprobs: list[TokenLogprobs] | None
    rerolled: bool


@dataclass(eq=False)  # two requests for the same are not the same
class Sequence:
    """A request's state. `unencoded` are the tokens that its KV cache does not hold yet.

    `checkpoints` are lengths, in tokens from the beginning, at which the KV cache is worth keeping
    for later requests: encoding pauses there.
    """

    request: GenerateRequest
    unencoded: list[int]
    checkpoints: frozenset[int] = frozenset()
    image_keys: tuple[int, ...] = ()  # what tells each image from every other, and from a token
    encoded: int = 0  # tokens that the KV cache holds
    reused: int | None = None  # of them, those of an earlier request, when it first ran
    block_index: int = 0
    step_index: int = 0  # denoising steps that the current canvas has had
    draft: list[int] | None = None  # the canvas' argmax, if it is nearly done
    speculations: int = 0  # passes that have bet on the current canvas
    answer: list[int] = field(default_factory=list)  # the tokens of its blocks
    rerolled: bool = False  # the first block came out empty and was begun again
    finish_reason: FinishReason | None = field(default=None)

    @classmethod
    def start(cls, request: GenerateRequest, end_tokens: Set[int] = frozenset()) -> "Sequence":
        """Checkpoints are the end of the prompt and, if it is long, of its first turn: what
        conversations with the same system prompt and tools have in common.
        """
        checkpoints = {len(request.prompt)}
        turn = next((i + 1 for i, t in enumerate(request.prompt) if t in end_tokens), 0)
        if turn >= WORTH_KEEPING_TOKENS:
            checkpoints.add(turn)
        keys = tuple(_image_key(image) for image in request.images)
        return cls(
            request,
            [*request.prompt, *request.delivered],
            frozenset(checkpoints),
            keys,
            block_index=request.delivered_blocks,
            answer=list(request.delivered),
        )

    @property
    def room(self) -> int:
        """How many more tokens the answer may have."""
        return self.request.max_tokens - len(self.answer)

    def stream(self, block: int) -> int:
        """Which of the seed's streams of random numbers a block has.

        Two for each choice: the second is for a first block that is made again.
        """
        return 2 * self.request.sampling.choice + (self.rerolled and block == 0)

    def reuse(self, length: int) -> None:
        """The KV cache holds the first `length` tokens already."""
        self.unencoded = self.unencoded[length:]
        self.encoded = length
        if self.reused is None:
            self.reused = length

    def park(self) -> None:
        """The KV cache holds nothing of it any more; its canvas stays as it is."""
        self.unencoded = [*self.request.prompt, *self.answer]
        self.encoded = 0
        self.draft = None  # a bet is for a pass that encodes nothing before the canvas

    def next_work(self, most_tokens: int, *, speculate: bool = False) -> Work | None:
        """What the next pass may do for this answer, encoding at most so many tokens.

        More of them only where an image begins and has more: one is encoded whole.
        """
        pauses = [at - self.encoded for at in self.checkpoints if at > self.encoded]
        count = self._without_cut(min([most_tokens, len(self.unencoded), *pauses]))
        tokens = self.unencoded[:count]
        denoise = len(tokens) == len(self.unencoded)
        if not tokens and not denoise:
            return None
        end = self.encoded + count
        images = tuple(i for i in self.request.images if self.encoded <= i.start < end)
        return Work(self, tokens, denoise, self.draft if speculate else None, images)

    def prefix_keys(self, tokens: list[int]) -> list[int]:
        """The sequence's first tokens, as prefixes are compared: images by what they show.

        All tokens of an image have one key, so two prefixes never part inside an image.
        """
        keys = list(tokens)
        for image, key in zip(self.request.images, self.image_keys, strict=True):
            if image.end <= len(tokens):
                keys[image.start : image.end] = [key] * image.tokens
        return keys

    def record(
        self, done: Work, step: StepResult | None, end_tokens: Set[int]
    ) -> FinishedBlock | None:
        """Take note of a pass; gives the block that it finished, if it finished one.

        An answer's first block that begins with an end token is not finished but begun again, once:
        now and then a canvas of noise settles on an empty answer where the next one would not.
        """
        self.unencoded = self.unencoded[len(done.tokens) :]
        self.encoded += len(done.tokens)
        if step is None:
            return None
        if self.request.sampling.ignore_eos:
            end_tokens = frozenset()
        self.step_index += 1
        self.speculations += done.speculation is not None
        if not step.done:
            self.draft = step.draft if step.nearly and self._goes_on(step, end_tokens) else None
            return None
        if self._comes_out_empty(step, end_tokens) and not self.rerolled:
            self.rerolled, self.draft = True, None
            return None
        block = self._finish(step, end_tokens)
        if step.next_started:
            self.encoded += len(self.unencoded)
            self.unencoded = []
            self.step_index = 1
        return block

    def _without_cut(self, count: int) -> int:
        """So many tokens, but none or all of an image: its rows see each other in one pass."""
        end = self.encoded + count
        cut = next((i for i in self.request.images if i.start < end < i.end), None)
        if cut is None:
            return count
        return cut.start - self.encoded if cut.start > self.encoded else cut.tokens

    def _goes_on(self, step: StepResult, end_tokens: Set[int]) -> bool:
        """Whether another block would follow this canvas."""
        return len(step.draft) < self.room and end_tokens.isdisjoint(step.draft)

    def _comes_out_empty(self, step: StepResult, end_tokens: Set[int]) -> bool:
        """Where a suffix is led up to, nothing is a good answer too."""
        first = self.block_index == 0 and not self.request.sampling.suffix
        return first and step.draft[0] in end_tokens

    def _finish(self, step: StepResult, end_tokens: Set[int]) -> FinishedBlock:
        canvas, room = step.draft, self.room
        if self.request.sampling.suffix:
            canvas = canvas[:room]  # the suffix is no part of the answer
        end = next((i + 1 for i, token in enumerate(canvas) if token in end_tokens), None)
        if end is not None and end <= room:
            tokens, self.finish_reason = canvas[:end], "stop"
        elif len(canvas) >= room:
            tokens, self.finish_reason = canvas[:room], "length"
        else:
            tokens = canvas
        block = FinishedBlock(
            tokens,
            self.step_index,
            self.speculations,
            self.finish_reason,
            logprobs=None if step.logprobs is None else step.logprobs[: len(tokens)],
            rerolled=self.rerolled and self.block_index == 0,
        )
        self.answer += tokens
        self.unencoded = canvas
        self.block_index += 1
        self.step_index = self.speculations = 0
        self.draft = None
        return block


def _image_key(image: Image) -> int:
    """A negative number, which no token is: of the pixels' hash and the size that they make."""
    size = image.height.to_bytes(4) + image.width.to_bytes(4)
    return -1 - int.from_bytes(hashlib.blake2b(size + image.pixels, digest_size=16).digest())
