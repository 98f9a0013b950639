"""The endpoint `POST /v1/decisions`."""

from typing import Any

from fastapi import APIRouter, Request, Response

from app.decision.reading import Answer, Answers
from app.dialects.deciding import prepared, respond
from app.dialects.decisions.schema import (
    AnyQuestion,
    ChoiceQuestion,
    DecisionsRequest,
    PredicateQuestion,
    ScoreQuestion,
)
from app.dialects.incoming import incoming
from app.dialects.item_turns import conversation
from app.services import Admission, services_of

router = APIRouter()


@router.post("/decisions", include_in_schema=False)
@router.post("/v1/decisions")
async def decisions(http: Request, admit: Admission) -> Response:
    services = services_of(http)
    async with incoming(http, DecisionsRequest) as arriving:
        body = arriving.body
        model = services.model_name(body.model)
        limits = admit(priority=body.priority or 0, param="questions")
        turns = await arriving.run(conversation, [], body.items)
        request = body.request(turns, body.asked, "input", {})
        given = await prepared(http, admit, arriving, request, limits)
    least = services.settings.least_label_mass

    def shown(answers: Answers) -> dict[str, Any]:
        each = zip(body.questions, answers.answers, strict=True)
        return {
            "model": model,
            "answers": [_answer(question, answer, least) for question, answer in each],
            "usage": _usage(answers),
        }

    return await respond(http, services, request, given, shown)


def _answer(question: AnyQuestion, answer: Answer, least_mass: float) -> dict[str, Any]:
    if answer.label_mass < least_mass:
        return {"type": "refusal", "name": question.name}
    head = {"type": question.type, "name": question.name}
    shares = answer.probabilities
    match question:
        case PredicateQuestion():
            return {**head, "probability": shares[0]}
        case ChoiceQuestion(choices=choices):
            return {
                **head,
                "choice": choices[answer.best].value,
                "confidence": answer.confidence,
                "probabilities": [
                    {"value": choice.value, "probability": share}
                    for choice, share in zip(choices, shares, strict=True)
                ],
            }
        case ScoreQuestion(levels=levels):
            return {
                **head,
                "score": answer.score,
                "confidence": answer.confidence,
                "probabilities": [
                    {"value": value, "label": level.label, "probability": share}
                    for value, (level, share) in enumerate(zip(levels, shares, strict=True))
                ],
            }


def _usage(answers: Answers) -> dict[str, Any]:
    return {
        "input_tokens": answers.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": answers.cached_tokens,
            "cache_write_tokens": answers.written_tokens,
        },
        "output_tokens": answers.slots,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answers.prompt_tokens + answers.slots,
    }
