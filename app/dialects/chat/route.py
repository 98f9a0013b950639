"""The endpoint `POST /v1/chat/completions`."""

import time
from collections.abc import Sequence

import msgspec
from fastapi import APIRouter, Request, Response

from app.answer.constraint import Demand, constrained
from app.answer.request import AnswerRequest, ChatFormat, prepare, unset_seed
from app.chat_format.gemma import CHANNEL_END
from app.dialects.chat.events import ChatAnswer
from app.dialects.chat.schema import ChatCompletionRequest
from app.dialects.chat.turns import chat_prompt, conversation, offered_tools
from app.dialects.demands import answer_demand
from app.dialects.incoming import incoming
from app.dialects.waiting import unless_gone
from app.errors import UNSUPPORTED, BadRequest
from app.prompting.conversation import Conversation
from app.prompting.images import Picture
from app.prompting.prompt import Prompt
from app.services import Admission, Services, prefix_salt, services_of
from engine.messages import Ready

router = APIRouter()


@router.post("/chat/completions", include_in_schema=False)
@router.post("/v1/chat/completions")
async def chat_completions(http: Request, admit: Admission) -> Response:
    services = services_of(http)
    async with incoming(http, ChatCompletionRequest) as arriving:
        body = arriving.body
        model = services.model_name(body.model)
        limits = admit(body.n or 1, priority=body.priority or 0)
        turns = await arriving.run(conversation, body.messages)
        pictures = await arriving.pictures(turns)
        if pictures and body.recorded:
            raise BadRequest(
                "diffusion.record: an answer to images cannot be recorded.",
                param="diffusion.record",
                code=UNSUPPORTED,
            )
        request = await arriving.run(answer_request, services, body, turns, pictures, limits)
        demand = await arriving.run(_demand, body)
        request = await constrained(services, request, demand, limits, thinks=body.thinks)
        prepared = prepare(request, limits, services.prompts.vocabulary, prefix_salt(http))
    head = {
        "id": f"chatcmpl-{request.id}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": services.fingerprint(limits),
    }
    answer = ChatAnswer(services, request, prepared, head, body)
    if body.stream:
        return answer.stream(http)
    return await unless_gone(http, answer.whole())


def _demand(body: ChatCompletionRequest) -> Demand | None:
    """Returns what the request demands of its answer."""
    return answer_demand(
        body.text_demand,
        offered_tools(body),
        body.choice,
        parallel=body.parallel_tool_calls is not False,
    )


def answer_request(
    services: Services,
    body: ChatCompletionRequest,
    turns: Conversation,
    pictures: Sequence[Picture],
    limits: Ready,
) -> AnswerRequest:
    """Returns the dialect-independent request. Raises BadRequest if no prompt can be made of it."""
    prompt = chat_prompt(services.prompts, body, turns, pictures, limits.context_length)
    seed = unset_seed(body.temperature, [prompt])
    top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return AnswerRequest(
        [prompt],
        msgspec.structs.replace(
            body.sampling(seed, services.prompts.vocabulary), top_logprobs=top_logprobs
        ),
        body.token_limit,
        "messages",
        timeout_s=body.timeout,
        n=body.n or 1,
        stops=body.stops,
        format=ChatFormat(
            calls=bool(body.offered), parallel_calls=body.parallel_tool_calls is not False
        ),
        limit_field=body.limit_field,
        prediction=body.predicted(services.prompts, limits, _thought_end(services, body, prompt)),
        thinking_budget=services.thinking_budget(body.thought_budget),
    )


def _thought_end(services: Services, body: ChatCompletionRequest, prompt: Prompt) -> int | None:
    """Returns the token that ends the thought before the answer, or None if there is no thought."""
    if not (prompt.thinking or body.thinks):
        return None
    return next(iter(services.prompts.vocabulary.control_ids((CHANNEL_END,))), None)
