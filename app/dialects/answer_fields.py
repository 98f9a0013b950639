"""The base of the answers' schemas, and the parts of answers that several dialects share.

The schemas describe what the endpoints send. They are for the OpenAPI document only: no endpoint
reads them, and tests hold real answers against them.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from engine.messages import StopReason


class Sent(BaseModel):
    """An object of an answer. It has no other fields than these."""

    model_config = ConfigDict(extra="forbid")


def optional(kind: type = dict) -> Any:
    """Returns the declaration of a field of this type that an object need not have."""
    return Field(default_factory=kind)


class RecordedBlock(Sent):
    token_ids: list[int]
    denoising_steps: int
    stopped: StopReason


class RecordedChoice(Sent):
    index: int
    prompt_token_ids: list[int]
    blocks: list[RecordedBlock]
    finish_reason: str


class Record(Sent):
    """What `easel replay` needs to make an answer again, and to compare it."""

    version: str
    fingerprint: str
    endpoint: str
    request: dict[str, Any]
    choices: list[RecordedChoice]


class Diffusion(Sent):
    """Figures of the answer that only block-diffusion models have."""

    blocks: int
    denoising_steps: int
    corrections: int
    tokens_per_step: float
    time_to_first_block_s: float
    tokens_per_second: float
    record: Record = optional()


class Frame(Sent):
    """A block as it looks after a denoising step. It is finished if it has the last two fields."""

    block: int
    step: int
    text: str
    tokens: list[str]
    accepted: list[bool]
    entropy: float
    settled: list[int] = optional(list)
    stopped: StopReason = optional(str)


class CachedTokens(Sent):
    cached_tokens: int


class ReasoningTokens(Sent):
    reasoning_tokens: int


class CompletionTokens(ReasoningTokens):
    """The details of an answer's tokens, with those of its prediction if it has one."""

    accepted_prediction_tokens: int = optional(int)
    rejected_prediction_tokens: int = optional(int)


class Usage(Sent):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: CompletionTokens


class LikelyToken(Sent):
    token: str
    logprob: float
    bytes: list[int]


class SentToken(LikelyToken):
    """A token of an answer, with the likeliest tokens at its position."""

    top_logprobs: list[LikelyToken]
