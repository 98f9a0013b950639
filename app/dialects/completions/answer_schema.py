"""The answers of `POST /v1/completions`."""

from typing import Literal

from app.dialects.answer_fields import Diffusion, Frame, Sent, Usage, optional


class CompletionLogprobs(Sent):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Sent):
    """A choice, or a part of it in a stream, where only the last part has a reason."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: CompletionLogprobs | None
    token_ids: list[int] = optional(list)
    prompt_token_ids: list[int] = optional(list)


class CompletionChunk(Sent):
    """A part of a streamed answer.

    The last part of each choice has the figures of the answer. Parts with a frame add nothing.
    """

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = optional()
    diffusion: Diffusion | Frame = optional()


class Completion(CompletionChunk):
    usage: Usage
    diffusion: Diffusion
