"""The endpoints `POST /v1/messages` and `/v1/messages/count_tokens`.

Claude Code and Anthropic's SDKs speak this dialect.
"""

import asyncio
import uuid

from fastapi import APIRouter, Request, Response

from app.answer.request import AnswerRequest, ChatFormat, prepare, unset_seed
from app.dialects.anthropic.events import MessagesAnswer
from app.dialects.anthropic.schema import CountTokensRequest, MessagesRequest
from app.dialects.anthropic.turns import conversation, offered_tools
from app.dialects.body import parsed
from app.dialects.waiting import unless_gone
from app.errors import ContextLengthExceeded
from app.prompting.prompt import Prompt
from app.services import Admission, Services, prefix_salt, services_of
from engine.messages import GenerateRequest, Ready

router = APIRouter()


@router.post("/v1/messages")
async def messages(http: Request, admit: Admission) -> Response:
    body = await parsed(http, MessagesRequest)
    services = services_of(http)
    model = services.model_name(body.model)
    limits = admit(priority=body.priority or 0)
    request = await asyncio.to_thread(answer_request, services, body)
    head = {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
    }
    prepared = _prepared(services, request, limits, prefix_salt(http))
    answer = MessagesAnswer(services, request, prepared, body.shows_thoughts, head)
    if body.stream:
        return answer.stream()
    return await unless_gone(http, answer.whole())


@router.post("/v1/messages/count_tokens")
async def count_tokens(http: Request) -> dict[str, int]:
    body = await parsed(http, CountTokensRequest)
    services = services_of(http)
    services.model_name(body.model)
    prompt = await asyncio.to_thread(_prompt, services, body)
    return {"input_tokens": len(prompt.tokens)}


def answer_request(services: Services, body: MessagesRequest) -> AnswerRequest:
    """Returns the dialect-independent request. Raises BadRequest if no prompt can be made of it."""
    choice = body.tool_choice
    prompt = _prompt(services, body)
    return AnswerRequest(
        [prompt],
        body.sampling(unset_seed(body.temperature, [prompt]), services.prompts.vocabulary),
        body.max_tokens,
        "messages",
        timeout_s=body.timeout,
        stops=tuple(body.stop_sequences or ()),
        format=ChatFormat(
            calls=bool(body.offered),
            parallel_calls=choice is None or not choice.disable_parallel_tool_use,
            whole_calls=True,
        ),
    )


def _prompt(services: Services, body: CountTokensRequest) -> Prompt:
    return services.prompts.chat(conversation(body), offered_tools(body), thinking=body.thinks)


def _prepared(
    services: Services, request: AnswerRequest, limits: Ready, salt: str
) -> list[GenerateRequest]:
    try:
        return prepare(request, limits, services.prompts.vocabulary, salt)
    except ContextLengthExceeded as error:
        # Claude Code recognises these words and compacts the conversation.
        tokens, most = len(request.prompts[0].tokens), limits.context_length - 1
        message = f"prompt is too long: {tokens} tokens > {most} maximum. {error.message}"
        raise ContextLengthExceeded(message, param=error.param) from error
