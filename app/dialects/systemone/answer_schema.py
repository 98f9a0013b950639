"""The answers of `POST /v1/systemone`."""

from typing import Literal

from app.dialects.answer_fields import CachedTokens, Sent


class NoulAnswer(Sent):
    type: Literal["noul"]
    noul: float


class ChoiceAnswer(Sent):
    type: Literal["choice"]
    choice: str
    probabilities: dict[str, float]
    confidence: float


class ScoreAnswer(Sent):
    type: Literal["score"]
    score: float
    legend: dict[str, str]
    probabilities: dict[str, float]
    confidence: float


class Diagnostics(Sent):
    label_mass: float
    argmax_is_label: bool


class Joint(Sent):
    """The number of canvases that were read, of tokens of each, and of the slots of all."""

    canvases: int
    width: int
    slots: int


class SystemOneUsage(Sent):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    total_tokens: int


class SystemOne(Sent):
    id: str
    object: Literal["structured_decision"]
    created: int
    model: str
    answers: dict[str, NoulAnswer | ChoiceAnswer | ScoreAnswer]
    usage: SystemOneUsage
    diagnostics: dict[str, Diagnostics]
    joint: Joint
