"""One request inside the worker, and the passes that the model makes for it. Plain Python.

A sequence tracks the state of its request and decides when the answer ends. It does not know other
requests (see the scheduler) or tensors (see the denoiser). Prefill and commit are the same thing
here: tokens that must be encoded before the next canvas can be denoised.
"""

import dataclasses
import hashlib
from collections.abc import Set
from dataclasses import dataclass, field
from itertools import takewhile

from engine.constraint.thoughts import Thoughts, ThoughtState
from engine.messages import (
    ClosedBy,
    FinishReason,
    GenerateRequest,
    Image,
    SlotResult,
    StopReason,
    TokenLogprobs,
)
from engine.schedule.reading import CanvasResult, Reading
from engine.schedule.settling import Settling

WORTH_KEEPING_TOKENS = 256  # a shorter first turn is not worth a pass that ends with it


@dataclass(frozen=True)
class Work:
    """The work of one pass for one sequence.

    The encoder reads `tokens` (prefill or commit) into the sequence's KV cache. Then, if `denoise`,
    the canvas behind them gets a denoising step. Both happen in one pass through the weights: a
    block is committed together with the next block's first step, and the end of the prompt is
    encoded together with the first step of all.

    `speculation` is the canvas' draft, if the pass shall speculate on it. The pass then also
    commits the draft and makes the next block's first step behind it. The speculation is won if
    this step finishes the current block and leaves it equal to the draft.

    `images` are the images whose tokens are in `tokens`. Images are never split.

    `reads` are the numbers of the canvases that a decision reads behind these tokens.
    """

    sequence: "Sequence"
    tokens: list[int]
    denoise: bool
    speculation: list[int] | None = None
    images: tuple[Image, ...] = ()
    reads: tuple[int, ...] = ()

    @property
    def encoded_tokens(self) -> int:
        """Returns how many tokens the pass encodes of prompts, those of reads included."""
        reading = self.sequence.reading
        return len(self.tokens) + (0 if reading is None else reading.tokens(self.reads))


Pass = list[Work]


@dataclass(frozen=True)
class StepResult:
    """The result of a denoising step of one canvas."""

    draft: list[int]  # the argmax canvas, up to where it is cut if a thought is closed
    stopped: StopReason | None = None  # why the draft is the finished block; None if it is not
    nearly: bool = False  # the canvas is likely to be done after the next step
    logprobs: list[TokenLogprobs] | None = None  # of the draft, if it is done and the request asks
    next_step: "StepResult | None" = None  # the next block's first one if the speculation was won
    corrected: bool = False  # the constraint did not allow the draft and has changed it
    fault: str | None = None  # why the constraint can be held no longer; the answer then fails
    thought_closed: bool = False  # the draft may end with a thought that had no tokens left
    finite: bool = True  # no number behind this result is NaN or infinite; else it means nothing
    accepted: list[bool] | None = None  # one per position, if the request asks for drafts
    entropy: float = 0.0  # mean over the canvas in nats, if the request asks for drafts

    @property
    def done(self) -> bool:
        """Returns whether the draft is the finished block."""
        return self.stopped is not None


# One per work of the pass. It is None if the work had no denoising step. For a decision, it has a
# result for each of the canvases.
WorkResult = StepResult | list[CanvasResult] | None
PassResult = list[WorkResult]


@dataclass(frozen=True)
class FinishedBlock:
    """A finished block of the answer."""

    tokens: list[int]
    denoising_steps: int
    speculations: int  # passes that speculated on it
    finish_reason: FinishReason | None  # None if the answer continues
    logprobs: list[TokenLogprobs] | None
    rerolled: bool
    stopped: StopReason | None = None  # why it had no further step; None for a decision
    corrections: int = 0  # steps after which the constraint changed the canvas
    settled: list[int] | None = None  # tokens that were final after each step, if drafts are sent
    thought_closed: ClosedBy | None = None  # why the thought at its end had no tokens left
    reads: list[list[SlotResult]] | None = None  # of a decision


@dataclass(eq=False)  # sequences are compared by identity: equal requests are different sequences
class Sequence:
    """A request's state.

    `end_tokens` are all tokens that end this answer. So does `padding`, if it fills a canvas up to
    the canvas' end.

    `checkpoints` are lengths, in tokens from the beginning, at which the KV cache is worth keeping
    for later requests. Encoding pauses at each.

    `reading` is set if the request is a decision. `boundaries` are then the only lengths at which
    encoding may pause, if the decision is exact.
    """

    request: GenerateRequest
    unencoded: list[int]  # tokens that the KV cache does not hold yet
    end_tokens: frozenset[int] = frozenset()
    padding: int | None = None
    checkpoints: frozenset[int] = frozenset()
    prompt_key: str = ""  # the same for all answers to one prompt
    image_keys: tuple[int, ...] = ()  # one per image, by its content; never equal to a token id
    encoded: int = 0  # number of tokens that the KV cache holds
    reused: int | None = None  # tokens reused from an earlier request when this one first ran
    block_index: int = 0
    step_index: int = 0  # denoising steps that the current canvas has had
    draft: list[int] | None = None  # the argmax canvas, if it is nearly done
    speculations: int = 0  # passes that have speculated on the current canvas
    corrections: int = 0  # steps after which the constraint changed the current canvas
    settling: Settling | None = None  # of the current canvas, if the request asks for drafts
    answer: list[int] = field(default_factory=list)  # the lead and all finished blocks
    thoughts: Thoughts | None = None  # None if the answer's format has none
    thought: ThoughtState = field(default_factory=ThoughtState)  # behind the answer so far
    rerolled: bool = False  # the current block would have left the answer empty: started again
    finish_reason: FinishReason | None = field(default=None)
    reading: Reading | None = None
    boundaries: tuple[int, ...] | None = None

    @classmethod
    def start(
        cls,
        request: GenerateRequest,
        end_tokens: Set[int] = frozenset(),
        padding: int | None = None,
        boundaries: tuple[int, ...] | None = None,
    ) -> "Sequence":
        """Returns the initial state of a request, given the checkpoint's end tokens and padding.

        The checkpoints are the end of the prompt and the end of its first turn, if that is long.
        Conversations with the same system prompt and tools have the first turn in common.
        """
        sampling, checkpoints = request.sampling, {len(request.prompt)}
        turn_ends = {*end_tokens, *sampling.end_tokens}
        turn = next((i + 1 for i, t in enumerate(request.prompt) if t in turn_ends), 0)
        if turn >= WORTH_KEEPING_TOKENS:
            checkpoints.add(turn)
        keys = tuple(_image_key(image) for image in request.images)
        answer, thoughts = _begun_answer(request), _thoughts(request)
        return cls(
            request,
            [*request.prompt, *answer],
            sampling.ends(end_tokens),
            None if sampling.ignore_eos else padding,
            frozenset(checkpoints),
            request.id,
            keys,
            block_index=request.delivered_blocks,
            answer=answer,
            thoughts=thoughts,
            thought=_begun_thought(thoughts, answer),
            reading=None if request.decision is None else Reading(request.decision),
            boundaries=boundaries,
        )

    def sibling(self, request: GenerateRequest) -> "Sequence":
        """Returns the initial state of another choice of this sequence's prompt.

        This sequence must be in its initial state too. As long as nothing is encoded, sequences
        without a begun answer hold no copy of the prompt.
        """
        answer, thoughts = _begun_answer(request), _thoughts(request)
        return dataclasses.replace(
            self,
            request=request,
            unencoded=[*request.prompt, *answer] if answer else request.prompt,
            block_index=request.delivered_blocks,
            answer=answer,
            thoughts=thoughts,
            thought=_begun_thought(thoughts, answer),
            reading=None if request.decision is None else Reading(request.decision),
        )

    @property
    def prompt_encoded(self) -> bool:
        """Returns whether the KV cache holds the whole prompt."""
        return self.encoded >= len(self.request.prompt)

    @property
    def room(self) -> int:
        """Returns how many more tokens the answer may have."""
        return self.request.max_tokens - len(self.answer)

    def stream(self, block: int) -> int:
        """Returns the number of the seed's stream of random numbers that a block uses.

        Each choice has two streams. The second one is for a block that is started again.
        """
        again = self.rerolled and block == self.block_index
        return 2 * self.request.sampling.choice + again

    def end_thought(self) -> None:
        """Leave no tokens to a thought that is open or yet to begin."""
        if self.thoughts is not None:
            self.thoughts.end()
            self.draft = None  # it may have tokens of the thought, so it can't be speculated on

    def reuse(self, length: int) -> None:
        """Note that the KV cache already holds the first `length` tokens."""
        self.unencoded = self.unencoded[length:]
        self.encoded = length
        if self.reused is None:
            self.reused = length

    def park(self) -> None:
        """Note that the sequence has lost its KV cache. Its canvas stays as it is."""
        self.unencoded = [*self.request.prompt, *self.answer]
        self.encoded = 0
        self.draft = None  # only a pass that encodes nothing before the canvas can speculate

    @property
    def lead(self) -> list[int]:
        """Returns the tokens that come with the current block, although no canvas has them."""
        return self.request.lead if self.block_index == 0 else []

    def cut(self, canvas: list[int]) -> tuple[list[int], FinishReason | None]:
        """Returns the canvas' tokens that belong to the answer, and why it ends there if it does.

        A suffix does not belong to the answer.
        """
        if self.request.sampling.suffix:
            canvas = canvas[: self.room]
        end = self._end(canvas)
        if end is not None and end <= self.room:
            return canvas[:end], "stop"
        return canvas[: self.room], "length" if len(canvas) >= self.room else None

    def next_work(
        self, most_tokens: int, *, speculate: bool = False, most_canvases: int = 1
    ) -> Work | None:
        """Returns the work for the next pass, or None if tokens must be encoded but none may be.

        It encodes at most `most_tokens` tokens. Only a longer image exceeds this, because images
        are encoded whole. A decision reads at most `most_canvases` canvases.
        """
        pauses = [at - self.encoded for at in self.checkpoints if at > self.encoded]
        count = self._without_split_image(min([most_tokens, len(self.unencoded), *pauses]))
        if self.boundaries is not None:
            count = self._to_boundary(count)
        tokens = self.unencoded[:count]
        denoise = len(tokens) == len(self.unencoded)
        end = self.encoded + count
        images = tuple(i for i in self.request.images if self.encoded <= i.start < end)
        if self.reading is not None:
            reads = self.reading.next(most_tokens - count, most_canvases) if denoise else ()
            return Work(self, tokens, False, None, images, reads) if tokens or reads else None
        if not tokens and not denoise:
            return None
        return Work(self, tokens, denoise, self.draft if speculate else None, images)

    def prefix_keys(self, tokens: list[int]) -> list[int]:
        """Returns `tokens`, the sequence's first tokens, with images replaced by their keys.

        Prefixes are compared by the result. All tokens of an image have the same key, so a common
        prefix never ends inside an image. With a salt, the first key depends on the salt too, so
        prefixes of other salts have not even one token in common.
        """
        keys = list(tokens)
        for image, key in zip(self.request.images, self.image_keys, strict=True):
            if image.end <= len(tokens):
                keys[image.start : image.end] = [key] * image.tokens
        if keys and self.request.salt:
            keys[0] = _salted(self.request.salt, keys[0])
        return keys

    def record(self, done: Work, step: WorkResult) -> FinishedBlock | None:
        """Record a pass. Returns the block that it finished, or None.

        A block that would end the answer before anything was said, but thoughts, is started again,
        once. Now and then a canvas of noise converges to an empty answer when other noise would
        not.
        """
        self.unencoded = self.unencoded[len(done.tokens) :]
        self.encoded += len(done.tokens)
        if step is None:
            return None
        if not isinstance(step, StepResult):
            return self._record_reads(done, step)
        self.step_index += 1
        self._settle(step)
        self.speculations += done.speculation is not None
        self.corrections += step.corrected
        if not step.done:
            self.draft = step.draft if step.nearly and self._continues(step.draft) else None
            return None
        if self._is_empty_answer(step.draft) and not self.rerolled:
            self.rerolled, self.draft = True, None
            return None
        block = self._finish(step)
        if step.next_step is not None:
            self.encoded += len(self.unencoded)
            self.unencoded = []
            self.step_index = 1
            self._settle(step.next_step)
        return block

    def _settle(self, step: StepResult) -> None:
        if step.accepted is not None:
            self.settling = (self.settling or Settling()).after(self.step_index, step.draft)

    def _record_reads(self, done: Work, results: list[CanvasResult]) -> FinishedBlock | None:
        """Record what a pass read. Returns the block with all results once they are complete."""
        assert self.reading is not None
        self.reading.record(done.reads, results)
        self.step_index += len(results)
        if not self.reading.done:
            return None
        self.finish_reason = "stop"
        return FinishedBlock(
            [],
            self.step_index,
            0,
            self.finish_reason,
            None,
            rerolled=False,
            reads=self.reading.results,
        )

    def _to_boundary(self, count: int) -> int:
        """Returns `count` or less, so that the encoding of so many tokens pauses at a boundary.

        A piece that is longer than `count` because of an image is encoded whole.
        """
        assert self.boundaries is not None
        end = self.encoded + count
        last = max((at for at in self.boundaries if at <= end), default=0)
        if last > self.encoded or not count:
            return max(last - self.encoded, 0)
        following = next(at for at in self.boundaries if at > self.encoded)
        has_image = any(self.encoded <= i.start < following for i in self.request.images)
        return following - self.encoded if has_image else 0

    def _without_split_image(self, count: int) -> int:
        """Returns `count`, changed if encoding so many tokens would split an image.

        An image's rows attend to each other, so they must be in one pass. The result then ends in
        front of the image, or behind it if the image comes first.
        """
        end = self.encoded + count
        cut = next((i for i in self.request.images if i.start < end < i.end), None)
        if cut is None:
            return count
        return cut.start - self.encoded if cut.start > self.encoded else cut.tokens

    def _end(self, canvas: list[int]) -> int | None:
        """Returns how many of the canvas' tokens are the answer's last ones, up to its end.

        The end token is one of them, padding is not. Returns None if the canvas has no end.
        """
        end = next((i + 1 for i, token in enumerate(canvas) if token in self.end_tokens), None)
        if end is not None or self.padding is None:
            return end
        behind = [*takewhile(lambda token: token == self.padding, reversed(canvas))]
        return len(canvas) - len(behind) if behind else None

    def _continues(self, canvas: list[int]) -> bool:
        """Returns whether another block would follow this canvas."""
        return len(canvas) < self.room and self._end(canvas) is None

    def _is_empty_answer(self, canvas: list[int]) -> bool:
        """Returns whether the answer ends with this canvas and has nothing but closed thoughts.

        It never counts as empty if it has a suffix.
        """
        end = self._end(canvas)
        if end is None or end > self.room or self.request.sampling.suffix:
            return False
        said = canvas[:end]
        if said and said[-1] in self.end_tokens:
            said = said[:-1]
        if self.thoughts is None:
            return not (self.answer or said)
        thought = self.thoughts.after(self.thought, said)
        return not (thought.spoken or thought.open)

    def _finish(self, step: StepResult) -> FinishedBlock:
        tokens, self.finish_reason = self.cut(step.draft)
        settled = None
        if self.settling is not None:
            counts = self.settling.counts(len(tokens), self.step_index)
            settled = [len(self.lead) + count for count in counts]
        thought_closed = None
        if self.thoughts is not None:
            had_open = self.thoughts.after(self.thought, tokens[:-1]).open
            self.thought = self.thoughts.after(self.thought, tokens)
            closes = had_open and not self.thought.open and len(tokens) == len(step.draft)
            if step.thought_closed and closes:
                thought_closed = self.thoughts.closed_by
        block = FinishedBlock(
            [*self.lead, *tokens],
            self.step_index,
            self.speculations,
            self.finish_reason,
            logprobs=None if step.logprobs is None else step.logprobs[: len(tokens)],
            rerolled=self.rerolled,
            stopped=step.stopped,
            corrections=self.corrections,
            settled=settled,
            thought_closed=thought_closed,
        )
        self.answer += tokens
        self.unencoded = step.draft
        self.block_index += 1
        self.step_index = self.speculations = self.corrections = 0
        self.draft = self.settling = None
        self.rerolled = False
        return block


def _begun_answer(request: GenerateRequest) -> list[int]:
    """Returns the tokens that the answer has before its first block in this worker."""
    return list(request.delivered or request.lead)


def _thoughts(request: GenerateRequest) -> Thoughts | None:
    """Returns the thoughts of an answer of its own, if its format has thoughts."""
    return None if request.thought is None else Thoughts(request.thought, request.max_tokens)


def _begun_thought(thoughts: Thoughts | None, answer: list[int]) -> ThoughtState:
    return ThoughtState() if thoughts is None else thoughts.after(thoughts.start, answer)


def _image_key(image: Image) -> int:
    """Returns a key of the image's size and pixels."""
    size = image.height.to_bytes(4) + image.width.to_bytes(4)
    return _key(size + image.pixels)


def _salted(salt: str, key: int) -> int:
    """Returns a key of the salt and the key or token id."""
    return _key(f"{salt}:{key}".encode())


def _key(content: bytes) -> int:
    """Returns a hash of the content as a negative number, unlike any token id."""
    return -1 - int.from_bytes(hashlib.blake2b(content, digest_size=16).digest())
