"""From a response to the answer in it, in one form for streams and whole answers of all dialects.

An answer has texts, thoughts, calls and reasons of its end. It has no ids, no times and nothing
that depends on what is kept or on who else is being served.
"""

import json
from collections import defaultdict
from typing import Any

Answer = dict[str, str]  # the parts by their names, such as "0 content"


class BrokenError(Exception):
    """The response is no answer and no error: it is cut off or has a wrong form."""


class RefusedError(Exception):
    """The response is an error of the API. The text is its status or `event`, and its code."""


def answer_of(path: str, status: int, body: str) -> Answer:
    """Returns the answer in a response that was read to its end.

    Raises RefusedError if it is an error, and BrokenError if it is neither.
    """
    try:
        streamed = body.startswith(("data:", "event:", ":"))
        parts = _events(body) if streamed else [json.loads(body)]
        for part in parts:
            if part.get("error"):
                where = "event" if status == 200 else str(status)
                error = part["error"]
                raise RefusedError(f"{where} {error.get('code') or error['type']}")
            if part.get("type") == "response.failed":
                raise RefusedError(f"event {part['response']['error']['code']}")
        if status != 200:
            raise BrokenError(f"status {status} without an error")
        answer = _PARSERS[path](parts, body)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BrokenError(f"{type(error).__name__} {error} in {body[-200:]!r}") from error
    if not any(name.endswith("end") for name in answer):
        raise BrokenError(f"cut off: {body[-200:]!r}")
    return answer


def _events(body: str) -> list[dict[str, Any]]:
    if not body.endswith("\n\n") and not body.endswith("\r\n\r\n"):
        raise BrokenError(f"cut off within an event: {body[-200:]!r}")
    data = [line[5:].strip() for line in body.splitlines() if line.startswith("data:")]
    return [json.loads(each) for each in data if each != "[DONE]"]


def _openai(parts: list[dict[str, Any]], body: str) -> Answer:
    """Chat's and completions' answers."""
    if parts[0]["object"].endswith("chunk") and "data: [DONE]" not in body:
        raise BrokenError("the stream has no [DONE]")
    answer: Answer = defaultdict(str)
    for part in parts:
        for choice in part["choices"]:
            index = choice["index"]
            message = choice.get("delta") or choice.get("message") or choice
            for kind in ("content", "reasoning_content", "text"):
                answer[f"{index} {kind}"] += message.get(kind) or ""
            for number, call in enumerate(message.get("tool_calls") or []):
                name = f"{index} call {call.get('index', number)}"
                function = call["function"]
                answer[f"{name} name"] += function.get("name") or ""
                answer[f"{name} arguments"] += function.get("arguments") or ""
            if choice.get("finish_reason"):
                answer[f"{index} end"] += choice["finish_reason"]
    return {name: text for name, text in answer.items() if text}


def _response(parts: list[dict[str, Any]], body: str) -> Answer:
    """Answers of /v1/responses. The text of a stream's deltas must be that of its last event."""
    last = parts[-1].get("response") or parts[-1]
    answer = {"end": f"{last['status']} {(last.get('incomplete_details') or {}).get('reason')}"}
    for number, item in enumerate(last["output"]):
        kept = {name: item.get(name) for name in ("type", "name", "arguments", "content")}
        for content in kept["content"] or []:
            content.pop("logprobs", None)
        answer[str(number)] = json.dumps(kept, sort_keys=True)
    if len(parts) > 1:
        if last["status"] not in ("completed", "incomplete"):
            raise BrokenError(f"the stream ends with the status {last['status']}")
        deltas = "".join(p["delta"] for p in parts if p["type"] == "response.output_text.delta")
        texts = "".join(
            content["text"]
            for item in last["output"]
            if item["type"] == "message"
            for content in item["content"]
        )
        if deltas != texts:
            raise BrokenError(f"the deltas are {deltas!r}, but the text is {texts!r}")
    return answer


def _message(parts: list[dict[str, Any]], body: str) -> Answer:
    """Answers of /v1/messages."""
    answer: Answer = defaultdict(str)
    if parts[0]["type"] == "message":
        for number, block in enumerate(parts[0]["content"]):
            _add_block(answer, number, block)
        answer["end"] = f"{parts[0]['stop_reason']} {parts[0]['stop_sequence']}"
        return dict(answer)
    for part in parts:
        match part["type"]:
            case "content_block_start":
                block = {**part["content_block"]}
                block.pop("input", None)
                _add_block(answer, part["index"], block)
            case "content_block_delta":
                _add_block(answer, part["index"], {**part["delta"], "type": ""})
            case "message_delta":
                end = f"{part['delta']['stop_reason']} {part['delta']['stop_sequence']}"
            case "message_stop":
                answer["end"] = end
    return {
        name: json.dumps(json.loads(text)) if name.endswith("input") else text
        for name, text in answer.items()
    }


def _add_block(answer: Answer, number: int, block: dict[str, Any]) -> None:
    answer[f"{number} type"] += block["type"]
    for kind in ("text", "thinking", "name"):
        if block.get(kind):
            answer[f"{number} {kind}"] += block[kind]
    if "partial_json" in block:
        answer[f"{number} input"] += block["partial_json"]
    elif "input" in block:
        answer[f"{number} input"] += json.dumps(block["input"])


_PARSERS = {
    "/v1/chat/completions": _openai,
    "/v1/completions": _openai,
    "/v1/responses": _response,
    "/v1/messages": _message,
}
