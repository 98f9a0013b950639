"""The endpoint `POST /v1/systemone`."""

import time
import uuid
from typing import Any

from fastapi import APIRouter, Request, Response

from app.decision.reading import Answer, Answers
from app.dialects.deciding import prepared, respond
from app.dialects.incoming import incoming
from app.dialects.systemone.schema import (
    AnyQuestion,
    ChoiceQuestion,
    NoulQuestion,
    ScoreQuestion,
    SystemOneRequest,
)
from app.services import Admission, services_of

router = APIRouter()


@router.post("/systemone", include_in_schema=False)
@router.post("/v1/systemone")
async def systemone(http: Request, admit: Admission) -> Response:
    services = services_of(http)
    async with incoming(http, SystemOneRequest) as arriving:
        body = arriving.body
        model = services.model_name(body.model)
        limits = admit(priority=body.priority or 0, param="questions")
        request = body.request(body.conversation, body.asked, "state", body.template_options)
        given = await prepared(http, admit, arriving, request, limits)

    def shown(answers: Answers) -> dict[str, Any]:
        each = dict(zip(body.questions, answers.answers, strict=True))
        return {
            "id": f"decision-{uuid.uuid4().hex}",
            "object": "structured_decision",
            "created": int(time.time()),
            "model": model,
            "answers": {id: _answer(body.questions[id], each[id]) for id in each},
            "usage": {
                "input_tokens": answers.prompt_tokens,
                "input_tokens_details": {"cached_tokens": answers.cached_tokens},
                "output_tokens": answers.slots,
                "total_tokens": answers.prompt_tokens + answers.slots,
            },
            "diagnostics": {
                id: {
                    "label_mass": answer.label_mass,
                    "argmax_is_label": answer.argmax_is_label,
                }
                for id, answer in each.items()
            },
            "joint": {
                "canvases": answers.canvases,
                "width": limits.canvas_length,
                "slots": answers.slots,
            },
        }

    return await respond(http, services, request, given, shown)


def _answer(question: AnyQuestion, answer: Answer) -> dict[str, Any]:
    shares, head = answer.probabilities, {"type": question.type}
    match question:
        case NoulQuestion():
            return {**head, "noul": shares[0]}
        case ChoiceQuestion(criteria=criteria):
            names = list(criteria)
            return {
                **head,
                "choice": names[answer.best],
                "probabilities": dict(zip(names, shares, strict=True)),
                "confidence": answer.confidence,
            }
        case ScoreQuestion(criteria=levels):
            return {
                **head,
                "score": answer.score,
                "legend": {str(index): level for index, level in enumerate(levels)},
                "probabilities": {str(index): share for index, share in enumerate(shares)},
                "confidence": answer.confidence,
            }
