"""`POST /v1/responses`, and the responses that are kept."""

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.errors import ApiError, BadRequest, NotFound, error_event
from app.prompt import Message, image_part
from app.response_store import KeptResponse
from app.routes.body import parsed
from app.routes.chat import call_arguments, token_logprobs
from app.routes.generation import (
    Admission,
    AnswerRequest,
    ChatFormat,
    Delta,
    Figures,
    Finished,
    Services,
    answer_events,
    check_model,
    diffusion,
    prepare,
    random_seed,
    services,
)
from app.routes.response_output import OutputItems, StreamEvent, item_id
from app.routes.waiting import unless_gone
from app.schemas.response_items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputImage,
    InputItem,
    ItemReference,
    MessageItem,
    ReasoningItem,
    sent_back,
)
from app.schemas.responses import FunctionTool, ResponseRequest
from app.schemas.tools import strict_validator
from app.sse import NamedEvent, event_stream
from engine.messages import GenerateRequest, TokenLogprobs

router = APIRouter()

# What OpenAI's parts always have, and ours only with these values.
_NEUTRAL: dict[str, dict[str, Any]] = {
    "output_text": {"annotations": []},
    "input_image": {"detail": "auto"},
}


@dataclass(frozen=True)
class Asked:
    """A request to answer, in all the terms that it is needed in."""

    body: ResponseRequest
    read: list[InputItem]  # the conversation, its last turn included
    request: AnswerRequest
    prepared: list[GenerateRequest]


@router.post("/responses", include_in_schema=False)
@router.post("/v1/responses")
async def create_response(http: Request, admit: Admission) -> Response:
    body = await parsed(http, ResponseRequest)
    found = services(http)
    check_model(body.model, found.settings.model)
    limits = admit()
    earlier = _earlier(found, body)
    said = [_resolved(found, item, index) for index, item in enumerate(body.items)]
    request = await asyncio.to_thread(_request, found, body, earlier, said)
    prepared = prepare(request, limits)
    asked = Asked(body, [*earlier, *said], request, prepared)
    head = _head(found, body)
    output = _output(found, asked)
    events = _events(found, asked, head, output)
    if body.stream:
        return event_stream(_stream(events, head, output))
    return await unless_gone(http, _whole(events))


@router.get("/responses/{id}", include_in_schema=False)
@router.get("/v1/responses/{id}")
async def get_response(http: Request, id: str) -> Response:
    if http.query_params.get("stream", "false") != "false":
        raise BadRequest("stream: a kept response is given whole.", param="stream")
    return JSONResponse(_kept(http, id).response)


@router.delete("/responses/{id}", include_in_schema=False)
@router.delete("/v1/responses/{id}")
async def delete_response(http: Request, id: str) -> Response:
    if not services(http).responses.delete(id):
        raise _not_kept(id)
    return JSONResponse({"id": id, "object": "response", "deleted": True})


@router.get("/responses/{id}/input_items", include_in_schema=False)
@router.get("/v1/responses/{id}/input_items")
async def get_input_items(http: Request, id: str) -> Response:
    """All that the model read, the turns before included."""
    query = http.query_params
    items = [_listed(item) for item in _kept(http, id).read]
    if query.get("order", "desc") != "asc":
        items.reverse()
    if "after" in query:
        places = [place for place, item in enumerate(items) if item["id"] == query["after"]]
        if not places:
            raise BadRequest(f"after: no item has the id {query['after']!r}.", param="after")
        items = items[places[0] + 1 :]
    limit = query.get("limit", "20")
    if not (re.fullmatch("[0-9]{1,3}", limit) and 1 <= int(limit) <= 100):
        raise BadRequest("limit: should be a number from 1 to 100.", param="limit")
    shown = items[: int(limit)]
    return JSONResponse(
        {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(shown) < len(items),
        }
    )


def _kept(http: Request, id: str) -> KeptResponse:
    kept = services(http).responses.get(id)
    if kept is None:
        raise _not_kept(id)
    return kept


def _not_kept(id: str) -> NotFound:
    return NotFound(f"Response with id {id!r} not found: never kept, deleted, or gone for others.")


def _listed(item: InputItem) -> dict[str, Any]:
    """As OpenAI lists it: with a status, and a message's content in parts."""
    listed = {"status": "completed", **item.model_dump(exclude_none=True)}
    if isinstance(item, MessageItem):
        parts = listed["content"]
        if isinstance(parts, str):
            kind = "output_text" if item.role == "assistant" else "input_text"
            parts = [{"type": kind, "text": parts}]
        listed["content"] = [{**part, **_NEUTRAL.get(part["type"], {})} for part in parts]
    return listed


def _earlier(found: Services, body: ResponseRequest) -> list[InputItem]:
    if body.previous_response_id is None:
        return []
    kept = found.responses.get(body.previous_response_id)
    if kept is None:
        raise BadRequest(
            f"Previous response with id {body.previous_response_id!r} not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return kept.conversation


def _resolved(found: Services, item: InputItem | ItemReference, index: int) -> InputItem:
    """The item that is meant, with an id."""
    if isinstance(item, ItemReference):
        referred = found.responses.item(item.id)
        if referred is None:
            raise NotFound(f"Item with id {item.id!r} not found.", param=f"input.{index}.id")
        return referred
    return item if item.id is not None else item.model_copy(update={"id": item_id(item.type)})


def _request(
    found: Services,
    body: ResponseRequest,
    earlier: Sequence[InputItem],
    said: Sequence[InputItem],
) -> AnswerRequest:
    offered = [] if body.tool_choice == "none" else body.functions
    messages = template_messages(earlier, said)
    if body.instructions is not None:
        messages.insert(0, {"role": "system", "content": body.instructions})
    tools = [_template_tool(tool) for tool in offered]
    prompt = found.prompts.chat(messages, tools, thinking=body.thinking, param="input")
    return AnswerRequest(
        [prompt],
        msgspec.structs.replace(
            body.sampling(random_seed()),
            top_logprobs=(body.top_logprobs or 0) if body.wants_logprobs else None,
        ),
        body.max_output_tokens,
        "input",
        timeout_s=body.timeout,
        format=ChatFormat(
            {
                tool.name: strict_validator(
                    tool.strict, tool.parameters, param=f"tools.{index}.parameters"
                )
                for index, tool in enumerate(body.tools or [])
                if isinstance(tool, FunctionTool) and body.tool_choice != "none"
            },
            parallel_calls=body.parallel_tool_calls is not False,
        ),
    )


def _template_tool(tool: FunctionTool) -> dict[str, Any]:
    function = tool.model_dump(exclude_none=True, exclude={"type"})
    return {"type": "function", "function": function}


def template_messages(earlier: Sequence[InputItem], said: Sequence[InputItem]) -> list[Message]:
    """In the template's terms: what the assistant thinks, says and calls in a row is one turn.

    Thoughts that lead to neither words nor calls are part of no turn and are left out. Raises
    BadRequest for a result of a call that nobody made.
    """
    turns: list[Message] = []
    called: set[str] = set()
    for place, item in enumerate([*earlier, *said], start=-len(earlier)):
        field = f"input.{place}" if place >= 0 else "previous_response_id"
        match item:
            case FunctionCallOutputItem():
                if item.call_id not in called:
                    raise BadRequest(
                        f"{field}.call_id: no call before it has the id {item.call_id!r}.",
                        param=f"{field}.call_id",
                    )
                result = {"role": "tool", "tool_call_id": item.call_id, "content": item.text}
                turns.append(result if item.name is None else {**result, "name": item.name})
            case MessageItem(role="assistant"):
                turn = _assistant_turn(turns, item)
                turn["content"] += item.text
            case MessageItem():
                turns.append({"role": item.role, "content": _content(item, field)})
            case ReasoningItem():
                turn = _assistant_turn(turns, item)
                turn["reasoning_content"] = turn.get("reasoning_content", "") + item.text
            case FunctionCallItem():
                called.add(item.call_id)
                function = {"name": item.name, "arguments": call_arguments(item.arguments)}
                call = {"id": item.call_id, "type": "function", "function": function}
                _assistant_turn(turns, item).setdefault("tool_calls", []).append(call)
    return [
        turn
        for turn in turns
        if turn["role"] != "assistant" or turn["content"] or "tool_calls" in turn
    ]


def _content(item: MessageItem, field: str) -> str | list[dict[str, Any]]:
    if isinstance(item.content, str):
        return item.content
    return [
        image_part(part.image_url, f"{field}.content.{index}.image_url")
        if isinstance(part, InputImage)
        else {"type": "text", "text": part.text}
        for index, part in enumerate(item.content)
    ]


def _assistant_turn(turns: list[Message], item: InputItem) -> Message:
    """The turn that the item is part of: the last one, unless that has said all it had to say.

    A turn that calls goes on until the first result, which must follow the calls.
    """
    last = turns[-1] if turns else {"role": None}
    goes_on = isinstance(item, FunctionCallItem) or "tool_calls" in last or not last.get("content")
    if last["role"] != "assistant" or not goes_on:
        turns.append({"role": "assistant", "content": ""})
    return turns[-1]


def _head(found: Services, body: ResponseRequest) -> dict[str, Any]:
    """The response as it is created: what was asked for, and nothing done yet."""
    effort = None if body.reasoning is None else body.reasoning.effort
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "model": found.settings.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": effort, "summary": body.summary},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": body.tool_choice or "auto",
        "tools": [{**tool.model_dump(), "strict": bool(tool.strict)} for tool in body.functions],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p or 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _output(found: Services, asked: Asked) -> OutputItems:
    def logprobs(figures: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
        if not asked.body.wants_logprobs:
            return []
        return token_logprobs(found.prompts.vocabulary, figures)

    return OutputItems(logprobs, summary=asked.body.summary is not None)


async def _events(
    found: Services, asked: Asked, head: dict[str, Any], output: OutputItems
) -> AsyncGenerator[StreamEvent, None]:
    """All of an answer; the last has the whole response, which is kept by then if it is to be."""
    yield {"type": "response.created", "response": head}
    yield {"type": "response.in_progress", "response": head}
    async with aclosing(answer_events(found, asked.request, asked.prepared)) as answer:
        async for event in answer:
            match event:
                case Delta():
                    for told in output.add(event.event, event.logprobs):
                        yield told
                case Finished():
                    status = "incomplete" if event.reason == "length" else "completed"
                    for told in output.end(status):
                        yield told
                    response = _response(head, output, status, event.figures)
                    if asked.body.store is not False:
                        said = sent_back(output.items)
                        found.responses.keep(KeptResponse(response, asked.read, said))
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


async def _whole(events: AsyncGenerator[StreamEvent, None]) -> Response:
    async with aclosing(events):
        async for event in events:
            last = event
    return JSONResponse(last["response"])


async def _stream(
    events: AsyncGenerator[StreamEvent, None], head: dict[str, Any], output: OutputItems
) -> AsyncGenerator[NamedEvent, None]:
    """As OpenAI's, which has no `[DONE]`."""
    number = 0

    def numbered(event: StreamEvent) -> NamedEvent:
        nonlocal number
        data = json.dumps({**event, "sequence_number": number}, ensure_ascii=False)
        number += 1
        return NamedEvent(event["type"], data)

    try:
        async with aclosing(events):
            async for event in events:
                yield numbered(event)
    except ApiError as error:
        output.end("incomplete")
        why = {"code": "server_error", "message": error.message}
        failed = {**head, "status": "failed", "error": why, "output": output.items}
        yield numbered({"type": "response.failed", "response": failed})
        yield numbered(error_event(error))  # the SDK passes on the one before, and raises this
