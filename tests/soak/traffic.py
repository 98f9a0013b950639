"""The clients of a soak: what they request, how they behave and what each of them observes.

They leave in many ways: before the first block, between blocks, by closing half of a connection, or
by no longer reading. They know nothing of the server's own figures.
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
class Request:
    """One request, for as many answers as `choices`."""

    path: str
    body: dict[str, Any]
    choices: int = 1

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))


@dataclass
class Observation:
    """A client's view of its request. `tokens` are those of the usage of a whole answer."""

    id: str
    choices: int
    end: End = "left"
    status: int = 0
    events: int = 0  # with text, thoughts or calls
    tokens: int | None = None
    why: str = ""  # the reason if the request was refused or failed


async def client(url: str, number: int, until: float, observations: list[Observation]) -> None:
    """Send one request after the other until the event loop's clock reaches `until`.

    Appends an observation of each request to `observations`.
    """
    rng, loop, kept = random.Random(number), asyncio.get_running_loop(), list[str]()
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as http:
        turn = 0
        while loop.time() < until:
            request = _bad(rng) if rng.random() < 0.1 else _good(rng, kept)
            observed = Observation(f"soak-{number}-{turn}", request.choices)
            turn += 1
            ways = ["stays", "leaves", "half_closes", "stops_reading"]
            match rng.choices(ways, [70, 20, 5, 5])[0]:
                case "stays":
                    await _stay(http, request, observed, kept)
                case "leaves":
                    await _leave(http, request, observed, rng)
                case way:
                    await _misbehave(url, request, observed, rng, half_close=way == "half_closes")
            observations.append(observed)


def _good(rng: random.Random, kept: list[str]) -> Request:
    """Make a valid request. `kept` has the id of the client's last kept response, if any."""
    question = rng.choice(QUESTIONS).format(n=rng.randint(2, 60))
    body: dict[str, Any] = {
        "stream": rng.random() < 0.6,
        "seed": rng.randrange(2**32),
        "priority": rng.choice([-1, 0, 0, 0, 1]),
        "temperature": rng.choice([0, 0.7, 1]),
    }
    if rng.random() < 0.2:
        body["ignore_eos"] = True  # a long answer
    tokens = rng.choice([8, 40, 100, 300])
    tools = rng.random() < 0.3
    messages = [{"role": "user", "content": question}]
    match rng.choice(["chat", "completions", "responses", "messages"]):
        case "chat":
            n = rng.choice([1, 1, 1, 2, 4])
            body |= {"messages": messages, "max_tokens": tokens, "n": n}
            if body["stream"]:
                body["stream_options"] = {"include_usage": True}
            if tools:
                function = {"name": "get_weather", "parameters": WEATHER}
                body["tools"] = [{"type": "function", "function": function}]
            if rng.random() < 0.2:
                body["stop"] = ["7", "is"]
            if rng.random() < 0.3:
                body["reasoning_effort"] = "high"
            if rng.random() < 0.2:
                body |= {"logprobs": True, "top_logprobs": 20}
            return Request("/v1/chat/completions", body, n)
        case "completions":
            prompts = [question] * rng.choice([1, 1, 3])
            body |= {"prompt": prompts, "max_tokens": tokens, "logprobs": 5}
            if body["stream"]:
                body["stream_options"] = {"include_usage": True}
            return Request("/v1/completions", body, len(prompts))
        case "responses":
            body |= {"input": question, "max_output_tokens": tokens}
            body["store"] = rng.random() < 0.7
            if kept and rng.random() < 0.5:
                body["previous_response_id"] = kept[-1]
            if tools:
                body["tools"] = [{"type": "function", "name": "get_weather", "parameters": WEATHER}]
            return Request("/v1/responses", body)
        case _:
            body |= {"model": "demo", "messages": messages, "max_tokens": tokens}
            if tools:
                body["tools"] = [{"name": "get_weather", "input_schema": WEATHER}]
            if rng.random() < 0.3:
                body["thinking"] = {"type": "adaptive"}
            del body["seed"]  # Anthropic's API has no seed
            return Request("/v1/messages", body)


def _bad(rng: random.Random) -> Request:
    """Make a request that must be refused before the worker gets it."""
    picture = [{"type": "image_url", "image_url": {"url": PICTURE}}]
    user = {"role": "user", "content": "hi"}
    return rng.choice(
        [
            Request("/v1/chat/completions", {"messages": [{"role": "user", "content": picture}]}),
            Request("/v1/chat/completions", {"messages": [user], "model": "another"}),
            Request("/v1/chat/completions", {"messages": [user], "tool_choice": "required"}),
            Request("/v1/completions", {"prompt": [5] * 5000, "stream": True}),
            Request("/v1/responses", {"input": "hi", "previous_response_id": "resp_none"}),
            Request("/v1/messages", {"model": "demo", "messages": [user]}),
            Request("/v1/nothing", {}),
        ]
    )


async def _stay(
    http: httpx.AsyncClient, request: Request, observed: Observation, kept: list[str]
) -> None:
    """Read the whole answer, like a client that needs it."""
    headers = {"x-request-id": observed.id}
    async with http.stream("POST", request.path, json=request.body, headers=headers) as response:
        observed.status = response.status_code
        parts = []  # the events of a stream, or the one object of a whole answer
        if response.headers["content-type"].startswith("text/event-stream"):
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    parts.append(json.loads(line[6:]))
                    observed.events += _has_content(parts[-1])
        else:
            parts.append(json.loads(await response.aread()))
    if observed.status >= 400:
        observed.end = "failed" if observed.status == 500 else "refused"
        observed.why = parts[0]["error"]["message"]
    elif any(part.get("error") for part in parts):
        observed.end = "failed"
        observed.why = str(parts[-1]["error"])
    else:
        observed.end = "finished"
        observed.tokens = _completion_tokens(parts)
        last = parts[-1].get("response") or parts[-1]
        if last.get("object") == "response" and last["store"]:
            kept[:] = [last["id"]]


async def _leave(
    http: httpx.AsyncClient, request: Request, observed: Observation, rng: random.Random
) -> None:
    """Leave after some time, before or after the first block, or after a number of events."""
    headers, events = {"x-request-id": observed.id}, rng.choice([0, 1, 2, 5])
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(rng.choice([0.001, 0.02, 0.1, 0.5, 2])):
            async with http.stream(
                "POST", request.path, json=request.body, headers=headers
            ) as response:
                observed.status = response.status_code
                if observed.status >= 400:
                    observed.end = "failed" if observed.status == 500 else "refused"
                    return
                async for line in response.aiter_lines():
                    observed.events += line.startswith("data: {") and _has_content(
                        json.loads(line[6:])
                    )
                    if observed.events >= events and request.stream:
                        return


async def _misbehave(
    url: str, request: Request, observed: Observation, rng: random.Random, *, half_close: bool
) -> None:
    """Close the sending half of a connection, or stop reading the answer and leave later."""
    address, body = urlsplit(url), json.dumps(request.body).encode()
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1024)
    head = (
        f"POST {request.path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"X-Request-Id: {observed.id}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    with contextlib.suppress(OSError):
        await writer.drain()
        if half_close:
            await asyncio.sleep(rng.choice([0, 0.02, 0.2]))
            writer.write_eof()
            async with asyncio.timeout(TIMEOUT_S):
                while await reader.read(1024):
                    pass
        else:
            await reader.read(rng.choice([1, 500]))
            await asyncio.sleep(rng.uniform(1, 6))
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _has_content(event: dict[str, Any]) -> bool:
    """Returns whether the event of a stream has text, a thought or a call of the model."""
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


def _completion_tokens(parts: list[dict[str, Any]]) -> int | None:
    """Returns the answer's tokens from the last part with usage, or None if no part has it."""
    for part in reversed(parts):
        usage = (part.get("response") or part).get("usage")
        if usage:
            return int(usage.get("completion_tokens", usage.get("output_tokens")))
    return None
