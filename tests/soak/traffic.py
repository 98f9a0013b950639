"""What a soak's clients ask, how they behave, and what each of them saw.

Half of the point is in how they leave: before the first block, between blocks, by closing half a
connection, by never reading on. Knows nothing of the server's own figures.
"""

import asyncio
import contextlib
import json
import random
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

PICTURE = "data:image/png;base64,iVBORw0KGgo="
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
QUESTIONS = (
    "Count to {n}",
    "Count to {n} and think first",
    "What is the capital of France?",
    "What is {n} plus 7?",
    "What is the weather in Paris?",
    "Write {n} as JSON",
)
TIMEOUT_S = 120

End = Literal["finished", "failed", "refused", "left"]


@dataclass(frozen=True)
class Asked:
    """One request. `choices` are the answers that it asks for."""

    path: str
    body: dict[str, Any]
    choices: int = 1

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))


@dataclass
class Seen:
    """What its client saw of it. `tokens` are the usage that a whole answer told."""

    id: str
    choices: int
    end: End = "left"
    status: int = 0
    events: int = 0  # with text, thoughts or calls
    tokens: int | None = None
    why: str = ""  # it was refused or failed


async def client(url: str, number: int, until: float, seen: list[Seen]) -> None:
    """Ask one thing after the other until the loop's clock is there."""
    chance, loop, kept = random.Random(number), asyncio.get_running_loop(), list[str]()
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as http:
        turn = 0
        while loop.time() < until:
            asked = _bad(chance) if chance.random() < 0.1 else _good(chance, kept)
            one = Seen(f"soak-{number}-{turn}", asked.choices)
            turn += 1
            match chance.choices(
                ["stays", "leaves", "half_closes", "stops_reading"], [70, 20, 5, 5]
            )[0]:
                case "stays":
                    await _ask(http, asked, one, kept)
                case "leaves":
                    await _leave(http, asked, one, chance)
                case way:
                    await _by_hand(url, asked, one, chance, half_close=way == "half_closes")
            seen.append(one)


def _good(chance: random.Random, kept: list[str]) -> Asked:
    question = chance.choice(QUESTIONS).format(n=chance.randint(2, 60))
    body: dict[str, Any] = {
        "stream": chance.random() < 0.6,
        "seed": chance.randrange(2**32),
        "priority": chance.choice([-1, 0, 0, 0, 1]),
        "temperature": chance.choice([0, 0.7, 1]),
    }
    if chance.random() < 0.2:
        body["ignore_eos"] = True  # a long one
    tokens = chance.choice([8, 40, 100, 300])
    tools = chance.random() < 0.3
    messages = [{"role": "user", "content": question}]
    match chance.choice(["chat", "completions", "responses", "messages"]):
        case "chat":
            n = chance.choice([1, 1, 1, 2, 4])
            body |= {"messages": messages, "max_tokens": tokens, "n": n}
            if body["stream"]:
                body["stream_options"] = {"include_usage": True}
            if tools:
                function = {"name": "get_weather", "parameters": WEATHER}
                body["tools"] = [{"type": "function", "function": function}]
            if chance.random() < 0.2:
                body["stop"] = ["7", "is"]
            if chance.random() < 0.3:
                body["reasoning_effort"] = "high"
            if chance.random() < 0.2:
                body |= {"logprobs": True, "top_logprobs": 20}
            return Asked("/v1/chat/completions", body, n)
        case "completions":
            prompts = [question] * chance.choice([1, 1, 3])
            body |= {"prompt": prompts, "max_tokens": tokens, "logprobs": 5}
            if body["stream"]:
                body["stream_options"] = {"include_usage": True}
            return Asked("/v1/completions", body, len(prompts))
        case "responses":
            body |= {"input": question, "max_output_tokens": tokens}
            body["store"] = chance.random() < 0.7
            if kept and chance.random() < 0.5:
                body["previous_response_id"] = kept[-1]
            if tools:
                body["tools"] = [{"type": "function", "name": "get_weather", "parameters": WEATHER}]
            return Asked("/v1/responses", body)
        case _:
            body |= {"model": "demo", "messages": messages, "max_tokens": tokens}
            if tools:
                body["tools"] = [{"name": "get_weather", "input_schema": WEATHER}]
            if chance.random() < 0.3:
                body["thinking"] = {"type": "adaptive"}
            del body["seed"]  # which Anthropic's API does not know
            return Asked("/v1/messages", body)


def _bad(chance: random.Random) -> Asked:
    """Something that must be refused, before the worker hears of it."""
    picture = [{"type": "image_url", "image_url": {"url": PICTURE}}]
    user = {"role": "user", "content": "hi"}
    return chance.choice(
        [
            Asked("/v1/chat/completions", {"messages": [{"role": "user", "content": picture}]}),
            Asked("/v1/chat/completions", {"messages": [user], "model": "another"}),
            Asked("/v1/chat/completions", {"messages": [user], "tool_choice": "required"}),
            Asked("/v1/completions", {"prompt": [5] * 5000, "stream": True}),
            Asked("/v1/responses", {"input": "hi", "previous_response_id": "resp_none"}),
            Asked("/v1/messages", {"model": "demo", "messages": [user]}),
            Asked("/v1/nothing", {}),
        ]
    )


async def _ask(http: httpx.AsyncClient, asked: Asked, one: Seen, kept: list[str]) -> None:
    """As a client does that wants its answer."""
    headers = {"x-request-id": one.id}
    async with http.stream("POST", asked.path, json=asked.body, headers=headers) as response:
        one.status = response.status_code
        told = []
        if response.headers["content-type"].startswith("text/event-stream"):
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    told.append(json.loads(line[6:]))
                    one.events += _says(told[-1])
        else:
            told.append(json.loads(await response.aread()))
    if one.status >= 400:
        one.end = "failed" if one.status == 500 else "refused"
        one.why = told[0]["error"]["message"]
    elif any(each.get("error") for each in told):
        one.end = "failed"
        one.why = str(told[-1]["error"])
    else:
        one.end = "finished"
        one.tokens = _usage(told)
        last = told[-1].get("response") or told[-1]
        if last.get("object") == "response" and last["store"]:
            kept[:] = [last["id"]]


async def _leave(http: httpx.AsyncClient, asked: Asked, one: Seen, chance: random.Random) -> None:
    """After some time, before the first block or behind it, or after so many events."""
    headers, events = {"x-request-id": one.id}, chance.choice([0, 1, 2, 5])
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(chance.choice([0.001, 0.02, 0.1, 0.5, 2])):
            async with http.stream(
                "POST", asked.path, json=asked.body, headers=headers
            ) as response:
                one.status = response.status_code
                if one.status >= 400:
                    one.end = "failed" if one.status == 500 else "refused"
                    return
                async for line in response.aiter_lines():
                    one.events += line.startswith("data: {") and _says(json.loads(line[6:]))
                    if one.events >= events and asked.stream:
                        return


async def _by_hand(
    url: str, asked: Asked, one: Seen, chance: random.Random, *, half_close: bool
) -> None:
    """On a socket of its own: says that nothing more will come, or reads no further."""
    where, body = urlsplit(url), json.dumps(asked.body).encode()
    reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=1024)
    head = (
        f"POST {asked.path} HTTP/1.1\r\nHost: {where.netloc}\r\nX-Request-Id: {one.id}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    with contextlib.suppress(OSError):
        await writer.drain()
        if half_close:
            await asyncio.sleep(chance.choice([0, 0.02, 0.2]))
            writer.write_eof()
            async with asyncio.timeout(TIMEOUT_S):
                while await reader.read(1024):
                    pass
        else:
            await reader.read(chance.choice([1, 500]))
            await asyncio.sleep(chance.uniform(1, 6))
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _says(event: dict[str, Any]) -> bool:
    """Whether a stream's event brings something that the model made."""
    if "choices" in event:
        return any(
            choice.get("text")
            or any(
                choice.get("delta", {}).get(kind)
                for kind in ("content", "reasoning_content", "tool_calls")
            )
            for choice in event["choices"]
        )
    return event.get("type", "").endswith("delta") and event["type"] != "message_delta"


def _usage(told: list[dict[str, Any]]) -> int | None:
    """The answer's tokens as the last event that has them tells."""
    for each in reversed(told):
        usage = (each.get("response") or each).get("usage")
        if usage:
            return int(usage.get("completion_tokens", usage.get("output_tokens")))
    return None
