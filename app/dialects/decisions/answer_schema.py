"""The answers of `POST /v1/decisions`."""

from typing import Literal

from pydantic import StrictBool, StrictStr

from app.dialects.answer_fields import ReasoningTokens, Sent


class PredicateAnswer(Sent):
    type: Literal["predicate"]
    name: str | None
    probability: float


class ChoiceProbability(Sent):
    value: StrictStr | StrictBool
    probability: float


class ChoiceAnswer(Sent):
    type: Literal["choice"]
    name: str | None
    choice: StrictStr | StrictBool
    confidence: float
    probabilities: list[ChoiceProbability]


class LevelProbability(Sent):
    value: int
    label: str
    probability: float


class ScoreAnswer(Sent):
    type: Literal["score"]
    name: str | None
    score: float
    confidence: float
    probabilities: list[LevelProbability]


class Refusal(Sent):
    type: Literal["refusal"]
    name: str | None


class InputTokensDetails(Sent):
    cached_tokens: int
    cache_write_tokens: int


class DecisionUsage(Sent):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class Decision(Sent):
    model: str
    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer | Refusal]
    usage: DecisionUsage
