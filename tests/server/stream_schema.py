"""Checks every chunk of a stream against OpenAI's published schema, more strictly than any client.

The schema is the `openai` package's types, which are generated from OpenAI's specification. Types
are not coerced, fields are required, literals are exact, and no field is allowed beside them except
our documented extensions. The functions here also check what a schema cannot express: the order of
the chunks, one end and one usage. They do not depend on the text of a stream.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from pydantic import TypeAdapter

CHUNK_EXTENSIONS = {"diffusion"}
DELTA_EXTENSIONS = {"reasoning", "reasoning_content"}


def strictly(schema: Any, data: Any) -> Any:
    """Returns `data` as `schema`, a pydantic type.

    Raises ValidationError if it does not fit exactly, or if it has unknown fields.
    """
    return TypeAdapter(schema).validate_json(json.dumps(data), strict=True, extra="forbid")


def check_chat_stream(lines: Iterable[str], *, include_usage: bool = False) -> list[dict[str, Any]]:
    """Returns the chunks of a correct chat stream as they were sent.

    `lines` are the lines of the response's body and `include_usage` is the option of the request.
    Raises AssertionError, KeyError or ValueError if the stream is wrong.
    """
    chunks = _chunks(lines)
    for chunk in chunks:
        known = _without(chunk, CHUNK_EXTENSIONS)
        known["choices"] = [
            {**choice, "delta": _without(choice["delta"], DELTA_EXTENSIONS)}
            for choice in chunk["choices"]
        ]
        strictly(ChatCompletionChunk, known)
    for choices in _check_frame(chunks, include_usage):
        deltas = [choice["delta"] for choice in choices]
        assert deltas[0] == {"role": "assistant", "content": ""}, f"begins with {deltas[0]}"
        assert all("role" not in delta for delta in deltas[1:]), "the role is sent once"
        assert all(delta for delta in deltas[1:-1]), "an empty chunk"
        assert deltas[-1] == {}, f"the last chunk has the delta {deltas[-1]}"
        reason = choices[-1]["finish_reason"]
        calls = _check_tool_calls(deltas, whole=reason != "length")
        assert (reason == "tool_calls") <= bool(calls), "tool_calls without a call"
        assert not calls or reason in ("tool_calls", "length"), f"a call that ends with {reason}"
    return chunks


def check_completion_stream(
    lines: Iterable[str], *, include_usage: bool = False
) -> list[dict[str, Any]]:
    """Returns the chunks of a correct stream of `/v1/completions`, like `check_chat_stream`."""
    chunks = _chunks(lines)
    for chunk in chunks:
        known = _without(chunk, CHUNK_EXTENSIONS)
        # The specification has one schema for whole and streamed completions, in which the reason
        # is never null. OpenAI's own streams send null until the end, and clients rely on it.
        known["choices"] = [
            {**choice, "finish_reason": choice["finish_reason"] or "stop"}
            for choice in chunk["choices"]
        ]
        strictly(Completion, known)
    for choices in _check_frame(chunks, include_usage):
        assert all(choice["text"] for choice in choices[:-1]), "an empty chunk"
        assert choices[-1]["text"] == "", "the last chunk has text"
    return chunks


def _chunks(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Returns the JSON of the events before [DONE].

    Every event must be one `data:` line and a blank line, and the last must be [DONE].
    """
    text = "\n".join(lines)
    # A comment keeps a quiet connection open. No blank line follows, which would be an empty event.
    lines = re.sub(r"^:.*\n", "", text, flags=re.MULTILINE).split("\n")
    assert not any(lines[1::2]), "an event is not one line and a blank line"
    assert all(line.startswith("data: ") for line in lines[::2]), "a line that is not data"
    *events, done = [line.removeprefix("data: ") for line in lines[::2]]
    assert done == "[DONE]", f"the last event is {done}"
    chunks = [json.loads(event) for event in events]
    assert chunks, "no chunk"
    assert not [chunk for chunk in chunks if "error" in chunk], "an error inside the stream"
    return chunks


def _check_frame(chunks: list[dict[str, Any]], include_usage: bool) -> list[list[dict[str, Any]]]:
    """Check what both kinds of streams share. Returns the parts of each choice, by its index."""
    for field in ("id", "created", "model", "object"):
        assert len({chunk[field] for chunk in chunks}) == 1, f"{field} changes"
    if include_usage:
        *chunks, last = chunks
        assert last["choices"] == [], "usage comes with an empty list of choices"
        _check_usage(last["usage"])
        assert all(chunk["usage"] is None for chunk in chunks), "usage before the end"
    else:
        assert all("usage" not in chunk for chunk in chunks), "usage that was not requested"
    assert all(chunk["choices"] for chunk in chunks), "a chunk without a choice"
    by_index: dict[int, list[dict[str, Any]]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            assert choice.keys() >= {"finish_reason", "logprobs"}, (
                "OpenAI's streams always have both fields"
            )
            by_index.setdefault(choice["index"], []).append(choice)
    assert sorted(by_index) == list(range(len(by_index))), "choices are numbered from 0"
    for parts in by_index.values():
        *before, end = [part["finish_reason"] for part in parts]
        assert end is not None, "a choice without an end"
        assert not any(before), "a choice goes on after its end"
    return [by_index[index] for index in sorted(by_index)]


def _check_usage(usage: Any) -> None:
    counts = strictly(CompletionUsage, usage)
    assert counts.total_tokens == counts.prompt_tokens + counts.completion_tokens
    assert min(counts.prompt_tokens, counts.completion_tokens) >= 0
    assert usage["prompt_tokens_details"]["cached_tokens"] <= counts.prompt_tokens


def _check_tool_calls(deltas: list[dict[str, Any]], *, whole: bool) -> list[dict[str, Any]]:
    """Returns the calls that the deltas add up to.

    Each call must have its id, type and name once, in its first part. Its arguments must be a JSON
    object, except for the last call of an answer that is not `whole`.
    """
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        for part in strictly(ChoiceDelta, _without(delta, DELTA_EXTENSIONS)).tool_calls or []:
            if part.index == len(calls):
                assert part.id, "a call begins without its id"
                assert part.type == "function", "a call begins without its type"
                assert part.function.name, "a call begins without its name"
                calls.append({"id": part.id, "arguments": ""})
            else:
                assert part.index == len(calls) - 1, f"call {part.index} after {len(calls) - 1}"
                assert (part.id, part.type, part.function.name) == (None, None, None), "named twice"
            calls[part.index]["arguments"] += part.function.arguments
    for call in calls if whole else calls[:-1]:
        assert isinstance(json.loads(call["arguments"]), dict), "arguments that are not an object"
    assert len({call["id"] for call in calls}) == len(calls), "two calls with one id"
    return calls


def _without(data: dict[str, Any], extensions: set[str]) -> dict[str, Any]:
    return {field: value for field, value in data.items() if field not in extensions}
