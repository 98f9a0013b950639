"""A conversation as the messages and tools that a chat template is given.

Every template that is served is Gemma's or like it. Gemma's turns have no ids, so the order alone
says which result belongs to which call; a schema has one type; a system turn is one text. This file
gives a template only what it can show: content is one text unless it has images, results follow
their calls in the calls' order, thoughts are no part of an old answer's text, arguments are always
a mapping, and schemas are simplified.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from app.chat_format.gemma import without_thoughts
from app.errors import BadRequest, short
from app.prompting.conversation import (
    Content,
    Conversation,
    ImagePart,
    Part,
    TextPart,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
)
from app.prompting.shown_schema import Schema, SchemaRoom, SchemaTooLargeError, shown_schema
from app.prompting.template import ChatTemplate, Message

_UNPARSED = "arguments"  # the name under which the model is shown arguments that are no JSON object


def shown_conversation(
    conversation: Conversation, template: ChatTemplate
) -> list[Turn | ToolResult]:
    """Returns the conversation in the order and with the content that the template can show.

    What the assistant says and calls in a row is one turn. It is left out if it is no more than a
    thought. Each result follows its call's turn, in the order of the calls. If the template shows
    no images in results, they follow as the user's. Raises BadRequest for an image in a system
    turn.
    """
    turns = _shown_turns(conversation)
    results = _results_by_turn(turns)
    shown: list[Turn | ToolResult] = []
    for index, each in enumerate(turns):
        if isinstance(each, Turn):
            shown.append(each)
        images: list[ImagePart] = []
        for result in results.get(index, ()):
            here = _images_of(result.content)
            if here and template.shows_result_images:
                shown.append(result)
            else:
                shown.append(replace(result, content=_text(result.content)))
                images += here
        if images:
            shown.append(Turn("user", tuple(images)))
    return shown


def images_of(conversation: Conversation) -> list[ImagePart]:
    """Returns the images in their order."""
    return [image for each in conversation for image in _images_of(each.content)]


def template_messages(conversation: Conversation, template: ChatTemplate) -> list[Message]:
    """Returns a shown conversation as OpenAI's messages, except that arguments are mappings."""
    names = {call.id: call.name for each in conversation for call in _calls(each)}
    messages: list[Message] = []
    for each in conversation:
        if isinstance(each, Turn):
            messages.append(_message(each, template))
            continue
        message = _result_message(each, names)
        if template.embeds_results and messages and messages[-1]["role"] == "assistant":
            response = {"name": message["name"], "response": message["content"]}
            messages[-1].setdefault("tool_responses", []).append(response)
        else:
            messages.append(message)
    return messages


def template_tools(tools: Iterable[Tool], template: ChatTemplate) -> list[dict[str, Any]]:
    """Returns the tools with schemas that the template can show.

    Raises BadRequest, naming the tool's field, if a schema stands for too many others.
    """
    room = SchemaRoom()
    return [_tool(tool, template.lost_names, room) for tool in tools]


def _shown_turns(conversation: Conversation) -> list[Turn | ToolResult]:
    """Returns the conversation with what each turn shows, and the assistant's neighbours joined."""
    turns: list[Turn | ToolResult] = []
    for assistant, several in groupby(conversation, key=_is_of_assistant):
        shown = [_shown_turn(each) if isinstance(each, Turn) else each for each in several]
        turns += (
            [_joined([each for each in shown if isinstance(each, Turn)])] if assistant else shown
        )
    return [each for each in turns if not _is_silent(each)]


def _is_of_assistant(each: Turn | ToolResult) -> bool:
    return isinstance(each, Turn) and each.role == "assistant"


def _is_silent(each: Turn | ToolResult) -> bool:
    """Returns whether this is a turn of the assistant that says and calls nothing."""
    return isinstance(each, Turn) and each.role == "assistant" and not (each.content or each.calls)


def _results_by_turn(conversation: Conversation) -> dict[int, list[ToolResult]]:
    """Returns the results by the index of the turn that made their call, in the calls' order.

    That is the last turn before a result which has a call of its id. A result without one stays at
    its own index.
    """
    results: dict[int, list[ToolResult]] = {}
    callers: dict[str, int] = {}
    for index, each in enumerate(conversation):
        if isinstance(each, ToolResult):
            results.setdefault(callers.get(each.call_id, index), []).append(each)
        callers |= dict.fromkeys((call.id for call in _calls(each)), index)
    for index, several in results.items():
        calls = _calls(conversation[index])
        # An id that several calls have stands for the first of them.
        order = {call.id: number for number, call in reversed([*enumerate(calls)])}
        several.sort(key=lambda result, order=order: order.get(result.call_id, -1))  # type: ignore[misc]
    return results


def _shown_turn(turn: Turn) -> Turn:
    content = turn.content
    match turn.role:
        case "system" | "developer":
            images = _images_of(content)
            if images:
                raise BadRequest(
                    f"{images[0].field}: only a user's message may have images.",
                    param=images[0].field,
                )
            # Gemma knows no developer.
            return replace(turn, role="system", content=_text(content))
        case "assistant" if not isinstance(content, str):
            content = tuple(
                TextPart(without_thoughts(part.text)) if isinstance(part, TextPart) else part
                for part in content
            )
    if not _images_of(content):
        text = _text(content)
        content = without_thoughts(text) if turn.role == "assistant" else text
    return replace(turn, content=content)


def _joined(turns: Sequence[Turn]) -> Turn:
    """Returns one turn of the assistant's."""
    if len(turns) == 1:
        return turns[0]
    texts = [turn.content for turn in turns if isinstance(turn.content, str)]
    content: Content
    if len(texts) == len(turns):
        content = "\n".join(filter(None, texts))
    else:
        content = tuple(part for turn in turns if turn.content for part in _parts(turn.content))
    return Turn(
        "assistant",
        content,
        thought="\n".join(filter(None, [turn.thought for turn in turns])),
        calls=tuple(call for turn in turns for call in turn.calls),
    )


def _message(turn: Turn, template: ChatTemplate) -> Message:
    message: Message = {"role": turn.role, "content": _content(turn.content)}
    if turn.name is not None:
        message["name"] = turn.name
    if turn.thought:  # templates look for it under either name
        message |= {"reasoning_content": turn.thought, "reasoning": turn.thought}
    if turn.calls:
        message["tool_calls"] = [_call(call, template.null) for call in turn.calls]
    return message


def _result_message(result: ToolResult, names: Mapping[str, str]) -> Message:
    return {
        "role": "tool",
        "tool_call_id": result.call_id,
        "name": result.name or names.get(result.call_id, "unknown"),
        "content": _content(result.content),
    }


def _call(call: ToolCall, null: Any) -> dict[str, Any]:
    arguments = call.arguments
    if not isinstance(arguments, Mapping):
        arguments = {_UNPARSED: arguments}
    function = {"name": call.name, "arguments": _with_null(arguments, null)}
    return {"id": call.id, "type": "function", "function": function}


def _with_null(value: Any, null: Any) -> Any:
    """Returns the value with every null replaced."""
    match value:
        case None:
            return null
        case Mapping():
            return {key: _with_null(each, null) for key, each in value.items()}
        case list():
            return [_with_null(each, null) for each in value]
    return value


def _tool(tool: Tool, lost_names: frozenset[str], room: SchemaRoom) -> dict[str, Any]:
    try:
        parameters = shown_schema(tool.parameters, room)
    except SchemaTooLargeError as error:
        raise BadRequest(
            f"{tool.field} ({short(tool.name)}): the schema is too large: {error}.",
            param=tool.field,
        ) from error
    function = {
        "name": tool.name,
        "description": _described(tool.description or "", parameters, lost_names),
        "parameters": parameters,
    }
    return {"type": "function", "function": function}


def _described(description: str, parameters: Schema, lost_names: frozenset[str]) -> str:
    """Returns the description with the parameters that the template drops by their names."""
    required = parameters.get("required", [])
    lost = [
        f"{name} ({schema['type']}{', required' if name in required else ''})"
        + (f": {schema['description']}" if "description" in schema else "")
        for name, schema in parameters["properties"].items()
        if name in lost_names
    ]
    if not lost:
        return description
    return f"{description} Further parameters: {'; '.join(lost)}.".strip()


def _content(content: Content) -> str | list[dict[str, str]]:
    """Returns one text, or parts whose neighbouring texts are joined."""
    if isinstance(content, str):
        return content
    parts: list[dict[str, str]] = []
    for kind, several in groupby(content, key=type):
        if kind is TextPart:
            parts.append({"type": "text", "text": _text([*several])})
        else:
            parts += [{"type": "image"} for _ in several]
    return parts


def _text(content: str | Sequence[Part]) -> str:
    """Returns the texts, a line each: a template would glue them together."""
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content if isinstance(part, TextPart))


def _parts(content: Content) -> Sequence[Part]:
    return [TextPart(content)] if isinstance(content, str) else content


def _images_of(content: Content) -> list[ImagePart]:
    return [part for part in _parts(content) if isinstance(part, ImagePart)]


def _calls(each: Turn | ToolResult) -> Sequence[ToolCall]:
    return each.calls if isinstance(each, Turn) else ()
