"""The endpoints `POST /v1/responses` and `/v1/responses/input_tokens`."""

import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.answer.constraint import Demand, constrained
from app.answer.figures import Figures, diffusion
from app.answer.generation import Delta, Finished, answer_events
from app.answer.request import AnswerRequest, ChatFormat, prepare, unset_seed
from app.dialects.demands import answer_demand, read_choice
from app.dialects.fields import quoted
from app.dialects.incoming import incoming
from app.dialects.item_turns import conversation, shown_name
from app.dialects.items import InputItem, ItemReference, sent_back
from app.dialects.logprobs import token_logprobs
from app.dialects.responses.events import OutputItems, StreamEvent, item_id
from app.dialects.responses.offered import namespaces, offered_tools
from app.dialects.responses.schema import (
    FunctionTool,
    InputTokensRequest,
    NamespaceTool,
    ResponseRequest,
)
from app.dialects.responses.store import KeptResponse, ResponseStore, response_store
from app.dialects.waiting import unless_gone
from app.errors import ApiError, BadRequest, NotFound, error_event, short
from app.prompting.conversation import Conversation, Turn
from app.prompting.images import Picture
from app.prompting.prompt import Prompt
from app.services import Admission, Services, prefix_salt, services_of
from app.sse import NamedEvent, event_stream
from engine.messages import GenerateRequest, Ready, TokenLogprobs

router = APIRouter()


@dataclass(frozen=True)
class Wanted:
    """A request in all the forms that its answer needs."""

    body: ResponseRequest
    read: list[InputItem]  # the whole conversation, including the request's own items
    request: AnswerRequest
    prepared: list[GenerateRequest]


@router.post("/responses", include_in_schema=False)
@router.post("/v1/responses")
async def create_response(http: Request, admit: Admission) -> Response:
    services, store = services_of(http), response_store(http)
    async with incoming(http, ResponseRequest) as arriving:
        body = arriving.body
        model = services.model_name(body.model)
        limits = admit(priority=body.priority or 0)
        earlier, new = _conversation(store, body)
        turns = await arriving.run(_turns, body, earlier, new)
        pictures = await arriving.pictures(turns, "input")
        request = await arriving.run(answer_request, services, body, turns, pictures, limits)
        demand = await arriving.run(_demand, body)
        request = await constrained(services, request, demand, limits, thinks=body.thinking)
        prepared = prepare(request, limits, services.prompts.vocabulary, prefix_salt(http))
        head = await arriving.run(_head, request.id, model, body)
    wanted = Wanted(body, [*earlier, *new], request, prepared)
    output = _output(services, wanted)
    events = _events(services, store, wanted, head, output)
    if body.stream:
        return ResponseStream(events, head, output).response(services.settings.stream_idle_s)
    return await unless_gone(http, _whole(services, events))


@router.post("/responses/input_tokens", include_in_schema=False)
@router.post("/v1/responses/input_tokens")
async def count_input_tokens(http: Request) -> dict[str, Any]:
    services = services_of(http)
    async with incoming(http, InputTokensRequest) as arriving:
        body = arriving.body
        services.model_name(body.model)
        earlier, new = _conversation(response_store(http), body)
        turns = await arriving.run(_turns, body, earlier, new)
        pictures = await arriving.pictures(turns, "input")
        prompt = await arriving.run(_prompt, services, body, turns, pictures)
    return {"object": "response.input_tokens", "input_tokens": len(prompt.tokens)}


def _conversation(
    store: ResponseStore, body: ResponseRequest
) -> tuple[list[InputItem], list[InputItem]]:
    """Returns the items of the kept response that the request continues, and the request's own.

    Raises BadRequest or NotFound if something that the request refers to is not kept.
    """
    earlier = _earlier(store, body)
    referred = set[str]()
    items = body.items
    for index, item in enumerate(items):
        if isinstance(item, ItemReference):
            if item.id in referred:
                raise BadRequest(
                    f"input.{index}.id: the item {quoted(item.id)} is referred to twice.",
                    param=f"input.{index}.id",
                )
            referred.add(item.id)
    return earlier, [_resolved(store, item, index) for index, item in enumerate(items)]


def _earlier(store: ResponseStore, body: ResponseRequest) -> list[InputItem]:
    """Returns the conversation that the request continues. Raises BadRequest if it is not kept."""
    if body.previous_response_id is None:
        return []
    kept = store.get(body.previous_response_id)
    if kept is None:
        raise BadRequest(
            f"Previous response with id {short(body.previous_response_id)!r} not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return kept.conversation


def _resolved(store: ResponseStore, item: InputItem | ItemReference, index: int) -> InputItem:
    """Returns the item, or the kept one that it refers to. Every item gets an id.

    Raises NotFound if the item that it refers to is not kept.
    """
    if isinstance(item, ItemReference):
        referred = store.item(item.id)
        if referred is None:
            raise NotFound(f"Item with id {short(item.id)!r} not found.", param=f"input.{index}.id")
        return referred
    return item if item.id is not None else item.named(item_id(item.type))


def answer_request(
    services: Services,
    body: ResponseRequest,
    turns: Conversation,
    pictures: Sequence[Picture],
    limits: Ready,
) -> AnswerRequest:
    """Returns the dialect-independent request. Raises BadRequest if no prompt can be made of it."""
    prompt = _prompt(services, body, turns, pictures, limits.context_length)
    return AnswerRequest(
        [prompt],
        msgspec.structs.replace(
            body.sampling(unset_seed(body.temperature, [prompt]), services.prompts.vocabulary),
            top_logprobs=(body.top_logprobs or 0) if body.wants_logprobs else None,
        ),
        body.max_output_tokens,
        "input",
        timeout_s=body.timeout,
        format=ChatFormat(
            calls=bool(offered_tools(body)),
            parallel_calls=body.parallel_tool_calls is not False,
        ),
        limit_field="max_output_tokens",
        thinking_budget=services.thinking_budget(body.thought_budget),
    )


def _demand(body: ResponseRequest) -> Demand | None:
    """Returns what the request demands of its answer."""
    choice = read_choice(body.tool_choice)
    if choice.names is not None:
        shown = {name: shown_name(*each) for name, each in namespaces(body).items()}
        choice = replace(choice, names=tuple(shown.get(name, name) for name in choice.names))
    return answer_demand(
        body.text_demand,
        offered_tools(body),
        choice,
        parallel=body.parallel_tool_calls is not False,
    )


def _turns(
    body: ResponseRequest, earlier: Sequence[InputItem], new: Sequence[InputItem]
) -> Conversation:
    turns = conversation(earlier, new)
    if body.instructions is not None:
        turns.insert(0, Turn("system", body.instructions))
    return turns


def _prompt(
    services: Services,
    body: ResponseRequest,
    turns: Conversation,
    pictures: Sequence[Picture],
    context_length: int | None = None,
) -> Prompt:
    return services.prompts.chat(
        turns,
        offered_tools(body),
        pictures=pictures,
        thinking=body.thinking,
        param="input",
        context_length=context_length,
    )


def _text_format(body: ResponseRequest) -> dict[str, Any]:
    """Returns the format of the response's text as OpenAI's API repeats it."""
    asked = None if body.text is None else body.text.format
    if asked is None:
        return {"type": "text"}
    return asked.model_dump(by_alias=True, exclude_none=True)


def _head(answer_id: str, model: str, body: ResponseRequest) -> dict[str, Any]:
    """Returns the response as it is before its answer: the request's fields, and no output."""
    effort = None if body.reasoning is None else body.reasoning.effort
    return {
        "id": f"resp_{answer_id}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "frequency_penalty": 0.0,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata if isinstance(body.metadata, dict) else {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "presence_penalty": 0.0,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": effort, "summary": body.summary},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": _text_format(body), "verbosity": "medium"},
        "tool_choice": body.tool_choice or "auto",
        "tools": [_listed_tool(tool) for tool in body.shown_tools],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p or 1.0,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
    }


def _listed_tool(tool: FunctionTool | NamespaceTool) -> dict[str, Any]:
    if isinstance(tool, FunctionTool):
        return {**tool.model_dump(), "strict": bool(tool.strict)}
    inner = [_listed_tool(each) for each in tool.tools if isinstance(each, FunctionTool)]
    return {**tool.model_dump(), "tools": inner}


def _output(services: Services, wanted: Wanted) -> OutputItems:
    def logprobs(figures: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
        if not wanted.body.wants_logprobs:
            return []
        return token_logprobs(services.prompts.vocabulary, figures)

    return OutputItems(
        logprobs,
        summary=wanted.body.summary is not None,
        namespaces=namespaces(wanted.body),
    )


async def _events(
    services: Services,
    store: ResponseStore,
    wanted: Wanted,
    head: dict[str, Any],
    output: OutputItems,
) -> AsyncGenerator[StreamEvent, None]:
    """Yields all events of an answer. The last one has the whole response.

    Unless the request forbids it, the response is stored before that event.
    """
    yield {"type": "response.created", "response": head}
    yield {"type": "response.in_progress", "response": head}
    async with aclosing(answer_events(services, wanted.request, wanted.prepared)) as answer:
        async for event in answer:
            match event:
                case Delta():
                    for growth in output.add(event.event, event.logprobs):
                        yield growth
                case Finished():
                    status = "incomplete" if event.reason == "length" else "completed"
                    for growth in output.end(status):
                        yield growth
                    response = _response(head, output, status, event.figures)
                    if wanted.body.store is not False:
                        answer_items = [sent_back(item) for item in output.items]
                        kept = KeptResponse(response, wanted.read, answer_items)
                        # In a thread, because a large one takes a second.
                        sized = services.threads.prompts.run(kept.size_bytes, store.most_bytes)
                        store.keep(kept, await sized)
                    yield {"type": f"response.{status}", "response": response}


def _response(
    head: dict[str, Any], output: OutputItems, status: str, figures: Figures
) -> dict[str, Any]:
    incomplete = status == "incomplete"
    return {
        **head,
        "status": status,
        "completed_at": None if incomplete else int(time.time()),
        "incomplete_details": {"reason": "max_output_tokens"} if incomplete else None,
        "output": output.items,
        "usage": {
            "input_tokens": figures.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": figures.cached_tokens,
                "cache_write_tokens": figures.prompt_tokens - figures.cached_tokens,
            },
            "output_tokens": figures.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": figures.thinking_tokens},
            "total_tokens": figures.prompt_tokens + figures.completion_tokens,
        },
        "diffusion": diffusion([figures]),
    }


async def _whole(services: Services, events: AsyncGenerator[StreamEvent, None]) -> Response:
    async with aclosing(events):
        async for event in events:
            last = event
    return await services.threads.prompts.run(JSONResponse, last["response"])


@dataclass
class ResponseStream:
    """The numbered events of an answer. Like OpenAI's, the stream has no `[DONE]`."""

    events: AsyncGenerator[StreamEvent, None]
    head: dict[str, Any]
    output: OutputItems
    next_number: int = 0

    def response(self, idle_s: float) -> Response:
        return event_stream(self._numbered_events(), idle_s, self._keep_alive)

    async def _numbered_events(self) -> AsyncGenerator[NamedEvent, None]:
        try:
            async with aclosing(self.events):
                async for event in self.events:
                    yield self._numbered(event)
        except ApiError as error:
            self.output.end("incomplete")
            why = {"code": "server_error", "message": error.message}
            yield self._numbered(self._lifecycle("failed", error=why))
            yield self._numbered(error_event(error))  # SDKs return the event before, and raise this

    def _keep_alive(self) -> NamedEvent:
        """Returns an event that changes nothing.

        Comments do not reset the idle timers of clients such as Codex. OpenAI's own server sends
        events of a type `keepalive`, on which some SDKs fail because no reference describes it.
        """
        return self._numbered(self._lifecycle("in_progress"))

    def _lifecycle(self, status: str, **changed: Any) -> StreamEvent:
        """Returns an event with the response so far."""
        response = {**self.head, "status": status, "output": self.output.items, **changed}
        return {"type": f"response.{status}", "response": response}

    def _numbered(self, event: StreamEvent) -> NamedEvent:
        data = json.dumps({**event, "sequence_number": self.next_number}, ensure_ascii=False)
        self.next_number += 1
        return NamedEvent(event["type"], data)
