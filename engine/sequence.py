"""One request inside the worker, and the passes that the model makes for it. Plain Python.

Knows where the request stands and when its answer ends; not who else is served (scheduler) nor
any tensor (denoiser). Prefill and commit are one thing here: tokens that have to be encoded
before the next canvas can be denoised.
"""

from collections.abc import Set
from dataclasses import dataclass, field

from engine.messages import FinishReason, GenerateRequest


@dataclass(frozen=True)
class Encode:
    """Prefill or commit: the encoder reads these tokens into the sequence's KV cache."""

    sequence: "Sequence"
    tokens: list[int]


@dataclass(frozen=True)
class Denoise:
    """One denoising step of the sequence's current canvas."""

    sequence: "Sequence"


Pass = Encode | Denoise


@dataclass(frozen=True)
class PassResult:
    """`canvas` is the argmax canvas if the pass finished the block, else None."""

    canvas: list[int] | None = None


@dataclass(frozen=True)
class FinishedBlock:
    """What one block adds to the answer, and whether it ends it."""

    tokens: list[int]
    denoising_steps: int
    finish_reason: FinishReason | None


@dataclass
class Sequence:
    """A request's state. `unencoded` are the tokens that no KV cache holds yet."""

    request: GenerateRequest
    unencoded: list[int]
    block_index: int = 0
    step_index: int = 0  # denoising steps that the current canvas has had
    answer_tokens: int = 0
    finish_reason: FinishReason | None = field(default=None)

    @classmethod
    def start(cls, request: GenerateRequest) -> "Sequence":
        return cls(request, list(request.prompt))

    def next_pass(self, prefill_chunk: int) -> Pass:
        """What the model has to do next for this answer."""
        if self.unencoded:
            return Encode(self, self.unencoded[:prefill_chunk])
        return Denoise(self)

    def record(self, done: Pass, result: PassResult, end_tokens: Set[int]) -> FinishedBlock | None:
        """Take note of a pass; gives the block that it finished, if it finished one."""
        match done:
            case Encode(tokens=tokens):
                self.unencoded = self.unencoded[len(tokens) :]
                return None
            case Denoise():
                self.step_index += 1
                return None if result.canvas is None else self._finish(result.canvas, end_tokens)

    def _finish(self, canvas: list[int], end_tokens: Set[int]) -> FinishedBlock:
        room = self.request.max_tokens - self.answer_tokens
        end = next((i + 1 for i, token in enumerate(canvas) if token in end_tokens), None)
        if end is not None and end <= room:
            tokens, self.finish_reason = canvas[:end], "stop"
        elif len(canvas) >= room:
            tokens, self.finish_reason = canvas[:room], "length"
        else:
            tokens = canvas
        block = FinishedBlock(tokens, self.step_index, self.finish_reason)
        self.answer_tokens += len(tokens)
        self.unencoded = canvas
        self.block_index += 1
        self.step_index = 0
        return block
