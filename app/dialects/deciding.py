"""The parts that both dialects of decisions share: Easel's own fields, and the way to answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Discriminator, Field

from app.decision.questions import Question
from app.decision.reading import Answers, answers
from app.decision.request import DecisionRequest, Prepared, canvases, prepare, with_questions
from app.dialects.fields import Whole
from app.dialects.incoming import Incoming
from app.dialects.sampling_fields import ScheduledFields
from app.dialects.waiting import unless_gone
from app.engine_client.worker import Admit
from app.prompting.conversation import Conversation
from app.prompting.images import Picture
from app.services import Services, prefix_salt
from engine.messages import MOST_SAMPLES, MOST_STEPS, Ready

MOST_QUESTIONS = 400
MOST_OPTIONS = 255

B = TypeVar("B", bound=BaseModel)


def by_question_type(*names: str) -> Any:
    """Returns a discriminator that selects a question's class by its `type`, one of the names."""

    def tag(value: Any) -> str | None:
        kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
        return f"({kind})" if isinstance(kind, str) else None

    *others, last = map(repr, names)
    allowed = f"{', '.join(others)} or {last}"
    return Discriminator(
        tag,
        custom_error_type="question",
        custom_error_message=f"Input should be an object with type {allowed}",
    )


class DecidingFields(ScheduledFields):
    """Easel's own fields, which say how a decision is read."""

    model: str | None = None
    seed: Whole | None = Field(default=None, ge=-(2**63), lt=2**63)
    samples: Whole | None = Field(default=None, ge=1, le=MOST_SAMPLES)
    steps: Whole | None = Field(default=None, ge=1, le=MOST_STEPS)
    joint: bool | None = None
    permute: bool | None = None

    def request(
        self,
        conversation: Conversation,
        questions: Sequence[Question],
        prompt_field: str,
        template_options: Mapping[str, Any],
    ) -> DecisionRequest:
        """Returns the request in the form that both dialects share."""
        return DecisionRequest(
            conversation,
            questions,
            prompt_field,
            seed=self.seed or 0,
            samples=self.samples or 1,
            steps=self.steps or 1,
            joint=self.joint is not False,
            permute=bool(self.permute),
            priority=self.priority or 0,
            timeout_s=self.timeout,
            template_options=template_options,
        )


async def prepared(
    http: Request, admit: Admit, arriving: Incoming[B], request: DecisionRequest, limits: Ready
) -> list[Prepared]:
    """Returns the request in the worker's form, all of whose messages are admitted.

    One of them was admitted before, with `limits`. Raises BadRequest or ContextLengthExceeded if no
    prompt can be made of the request, and what `admit` raises.
    """
    services, field = arriving.services, request.prompt_field
    prompts = services.prompts
    asked = await arriving.run(canvases, request, prompts, limits)
    pictures: dict[int, list[Picture]] = {-1: await arriving.pictures(request.conversation, field)}
    for number, each in enumerate(asked):
        if each.has_images:
            whole = with_questions(request.conversation, each.asked)
            pictures[number] = await arriving.pictures(whole, field)
    salt = prefix_salt(http)
    given = await arriving.run(prepare, request, asked, pictures, prompts, limits, salt)
    if len(given) > 1:
        admit(len(given) - 1, priority=request.priority, param="questions")
    return given


async def respond(
    http: Request,
    services: Services,
    request: DecisionRequest,
    given: Sequence[Prepared],
    shown: Callable[[Answers], dict[str, Any]],
) -> Response:
    """Returns the response with the answers, as `shown` makes it of them."""

    async def whole() -> Response:
        return JSONResponse(shown(await answers(services, request, given)))

    return await unless_gone(http, whole())
