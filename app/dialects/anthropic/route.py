"""The endpoints `POST /v1/messages` and `/v1/messages/count_tokens`.

Claude Code and Anthropic's SDKs speak this dialect.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fastapi import APIRouter, Request, Response

from app.answer.constraint import Demand, constrained
from app.answer.request import AnswerRequest, ChatFormat, prepare, unset_seed
from app.dialects.anthropic.events import MessagesAnswer
from app.dialects.anthropic.schema import CountTokensRequest, MessagesRequest
from app.dialects.anthropic.turns import conversation, offered_tools
from app.dialects.demands import answer_demand
from app.dialects.incoming import incoming
from app.dialects.waiting import unless_gone
from app.errors import ContextLengthExceeded
from app.prompting.conversation import Conversation
from app.prompting.images import Picture
from app.prompting.prompt import Prompt
from app.services import Admission, Services, prefix_salt, services_of
from engine.messages import Ready

router = APIRouter()


@router.post("/v1/messages")
async def messages(http: Request, admit: Admission) -> Response:
    services = services_of(http)
    async with incoming(http, MessagesRequest) as arriving:
        body = arriving.body
        model = services.model_name(body.model)
        limits = admit(priority=body.priority or 0)
        turns = await arriving.run(conversation, body)
        with _recognisable(limits):
            pictures = await arriving.pictures(turns)
            request = await arriving.run(answer_request, services, body, turns, pictures, limits)
            demand = await arriving.run(_demand, body)
            request = await constrained(services, request, demand, limits, thinks=body.thinks)
            prepared = prepare(request, limits, services.prompts.vocabulary, prefix_salt(http))
    head = {
        "id": f"msg_{request.id}",
        "type": "message",
        "role": "assistant",
        "model": model,
    }
    answer = MessagesAnswer(services, request, prepared, body.shows_thoughts, head)
    if body.stream:
        return answer.stream()
    return await unless_gone(http, answer.whole())


@router.post("/v1/messages/count_tokens")
async def count_tokens(http: Request) -> dict[str, int]:
    services = services_of(http)
    async with incoming(http, CountTokensRequest) as arriving:
        body = arriving.body
        services.model_name(body.model)
        turns = await arriving.run(conversation, body)
        pictures = await arriving.pictures(turns)
        prompt = await arriving.run(_prompt, services, body, turns, pictures)
    return {"input_tokens": len(prompt.tokens)}


def answer_request(
    services: Services,
    body: MessagesRequest,
    turns: Conversation,
    pictures: Sequence[Picture],
    limits: Ready,
) -> AnswerRequest:
    """Returns the dialect-independent request. Raises BadRequest if no prompt can be made of it."""
    prompt = _prompt(services, body, turns, pictures, limits.context_length)
    return AnswerRequest(
        [prompt],
        body.sampling(unset_seed(body.temperature, [prompt]), services.prompts.vocabulary),
        body.max_tokens,
        "messages",
        timeout_s=body.timeout,
        stops=tuple(body.stop_sequences or ()),
        format=ChatFormat(
            calls=bool(body.offered),
            parallel_calls=body.parallel_calls,
            whole_calls=True,
        ),
        thinking_budget=services.thinking_budget(body.thought_budget),
    )


def _demand(body: MessagesRequest) -> Demand | None:
    """Returns what the request demands of its answer."""
    return answer_demand(
        body.text_demand, offered_tools(body), body.choice, parallel=body.parallel_calls
    )


def _prompt(
    services: Services,
    body: CountTokensRequest,
    turns: Conversation,
    pictures: Sequence[Picture],
    context_length: int | None = None,
) -> Prompt:
    return services.prompts.chat(
        turns,
        offered_tools(body),
        pictures=pictures,
        thinking=body.thinks,
        context_length=context_length,
    )


@contextmanager
def _recognisable(limits: Ready) -> Iterator[None]:
    """Puts words by which Claude Code recognises a prompt that is too long before its error.

    Claude Code then compacts the conversation.
    """
    try:
        yield
    except ContextLengthExceeded as error:
        most = limits.context_length - 1
        message = f"prompt is too long: {error.tokens} tokens > {most} maximum. {error.message}"
        raise ContextLengthExceeded(message, param=error.param, tokens=error.tokens) from error
