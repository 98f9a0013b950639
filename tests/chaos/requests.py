"""The requests whose answers the chaos knows: of every dialect, streamed and whole, seeded.

The same request has the same answer, whatever else is being served and however often the worker
dies meanwhile. So each request is sent before the storm, and its answer is what every later one
must be.
"""

from dataclasses import dataclass
from typing import Any

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
QUESTIONS = (
    "Count to 12",
    "Count to 33 and think first",
    "What is the capital of France?",
    "What is 17 plus 7?",
    "What is the weather in Paris?",
)


@dataclass(frozen=True)
class Request:
    """A request and its name in the report."""

    name: str
    path: str
    body: dict[str, Any]


def catalogue() -> list[Request]:
    """Returns all requests, each of them streamed and whole."""
    made = []
    for seed, question in enumerate(QUESTIONS):
        for name, path, body in _of_dialects(question, seed):
            made += [
                Request(f"{name} {seed} {way}", path, {**body, "stream": way == "streamed"})
                for way in ("streamed", "whole")
            ]
    return made


def _of_dialects(question: str, seed: int) -> list[tuple[str, str, dict[str, Any]]]:
    messages = [{"role": "user", "content": question}]
    function = {"name": "get_weather", "parameters": WEATHER}
    sampled = {"seed": seed, "temperature": 0.7}
    chat, completions = "/v1/chat/completions", "/v1/completions"
    return [
        ("chat", chat, {"messages": messages, "max_tokens": 200, **sampled}),
        (
            "chat with tools",
            chat,
            {
                "messages": messages,
                "max_tokens": 100,
                "tools": [{"type": "function", "function": function}],
                "reasoning_effort": "high",
                **sampled,
            },
        ),
        (
            "chat n=2",
            chat,
            {"messages": messages, "max_tokens": 40, "n": 2, "stop": "7", **sampled},
        ),
        (
            "long chat",
            chat,
            {"messages": messages, "max_tokens": 600, "ignore_eos": True, "priority": 1, **sampled},
        ),
        (
            "completions",
            completions,
            {"prompt": [question, "2, 4, 6"], "max_tokens": 60, **sampled},
        ),
        (
            "responses",
            "/v1/responses",
            {
                "input": question,
                "max_output_tokens": 200,
                "store": seed % 2 == 0,
                "tools": [{"type": "function", **function}],
                **sampled,
            },
        ),
        # Anthropic's API has no seed. At temperature 0 the seed is made of the prompt.
        (
            "messages",
            "/v1/messages",
            {
                "model": "demo",
                "messages": messages,
                "max_tokens": 200,
                "temperature": 0,
                "tools": [{"name": "get_weather", "input_schema": WEATHER}],
                **({"thinking": {"type": "adaptive"}} if seed % 2 else {}),
            },
        ),
    ]
