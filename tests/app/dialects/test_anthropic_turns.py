"""Anthropic's conversations as the template's messages, and the worker's answers as Anthropic's."""

import json
from contextlib import nullcontext

import httpx
import pytest
from fastapi import FastAPI

from app.constraint.enforced import Constraints
from app.dialects.anthropic import route
from app.dialects.anthropic.schema import CountTokensRequest
from app.dialects.anthropic.turns import conversation
from app.errors import BadRequest, GenerationFailed
from app.metrics import Metrics
from app.prompting.conversation import ImageFile, ImagePart, TextPart
from app.prompting.prompt import PromptBuilder
from app.services import Services
from app.settings import Settings
from app.threads import Threads
from demo.tokenizer import SPECIAL_TOKENS
from engine.config import DEMO_MODEL_PATH
from engine.messages import Block, Ready
from tests.app.shown import shown_messages


def parsed_turns(*messages, **fields):
    body = {"model": "demo", "messages": list(messages), **fields}
    return conversation(CountTokensRequest.model_validate_json(json.dumps(body)))


def turns(*messages, **fields):
    """Returns the template's messages."""
    return shown_messages(parsed_turns(*messages, **fields))


def user(*blocks):
    return {"role": "user", "content": [*blocks]}


def assistant(*blocks):
    return {"role": "assistant", "content": [*blocks]}


def text(value):
    return {"type": "text", "text": value}


def use(name):
    return {"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": {"name": name}}


def result(name, **fields):
    return {"type": "tool_result", "tool_use_id": f"toolu_{name}", **fields}


def test_neighbours_of_one_role_are_one_turn_and_empty_texts_are_left_out():
    assert turns(
        user(text("Hello"), text(" \n")),
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "there"},
        assistant(text("Hi.")),
        assistant(text("How are you?")),
        user(text("Well.")),
    ) == [
        {"role": "user", "content": "Hello\nthere"},
        {"role": "assistant", "content": "Hi.\nHow are you?"},
        {"role": "user", "content": "Well."},
    ]


def test_the_system_prompt_comes_first_and_system_messages_keep_their_position():
    assert turns(
        {"role": "user", "content": "Hello"},
        {"role": "system", "content": "Be brief."},
        system=[text("You are kind."), text(""), text("Be honest.")],
    ) == [
        {"role": "system", "content": "You are kind.\nBe honest."},
        {"role": "user", "content": "Hello"},
        {"role": "system", "content": "Be brief."},
    ]


@pytest.mark.parametrize(
    "system",
    [
        [text("x-anthropic-billing-header: cch=1;"), text("You are kind.")],
        [text("x-anthropic-billing-header: cch=1;\nYou are kind.")],
        "x-anthropic-billing-header: cch=1;\nYou are kind.",
    ],
)
def test_the_attribution_line_of_claude_code_is_not_shown_to_the_model(system):
    first, _ = turns({"role": "user", "content": "Hello"}, system=system)
    assert first == {"role": "system", "content": "You are kind."}


def test_results_have_the_order_of_their_calls_and_come_before_the_text():
    hello, call, *following = turns(
        user(text("Hello")),
        assistant(
            {"type": "thinking", "thinking": "Two.", "signature": ""},
            {"type": "redacted_thinking", "data": "AAAA"},
            text("Both:"),
            use("a"),
            use("b"),
        ),
        user(text("First,"), result("b", content=[text("2"), text("3")])),
        user(result("a", content="1"), text("then.")),
    )
    assert hello["role"] == "user"
    assert (call["content"], call["reasoning_content"]) == ("Both:", "Two.")
    assert [each["function"] for each in call["tool_calls"]] == [
        {"name": "a", "arguments": {"name": "a"}},
        {"name": "b", "arguments": {"name": "b"}},
    ]
    assert following == [
        {"role": "tool", "tool_call_id": "toolu_a", "name": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "toolu_b", "name": "b", "content": "2\n3"},
        {"role": "user", "content": "First,\nthen."},
    ]


def test_the_model_is_told_that_a_tool_failed():
    for fields, shown in (
        ({"content": "no file"}, "The tool failed:\nno file"),
        ({}, "The tool failed:"),
        ({"content": "fine", "is_error": False}, "fine"),
    ):
        answer = result("a", **{"is_error": True, **fields})
        *_, last = turns(user(text("Go")), assistant(use("a")), user(answer))
        assert last["content"] == shown


def test_a_result_needs_its_call_in_the_message_before_it():
    for before in ((), (assistant(use("a")), user(result("a")), assistant(text("Done.")))):
        with pytest.raises(BadRequest, match="toolu_a"):
            turns(user(text("Go")), *before, user(result("a")))


def test_an_image_keeps_the_file_that_was_sent():
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    image = {"type": "image", "source": source}
    part = ImagePart(ImageFile("AAAA"), "messages")
    (turn,) = parsed_turns(user(text("What"), text("is"), image, text("this?")))
    assert turn.content == (TextPart("What"), TextPart("is"), part, TextPart("this?"))
    *_, last = parsed_turns(
        user(text("Go")), assistant(use("a")), user(result("a", content=[image]))
    )
    assert last.content == (part,)


class ScriptedWorker:
    """Answers every request with the same text. Markers in it become control tokens."""

    ready = Ready(
        "cpu",
        "float32",
        context_length=2048,
        canvas_length=32,
        vocab_size=4096,
        profile="none",
    )

    def __init__(self, prompts, answer, finish_reason):
        self._tokens = prompts.vocabulary.encode(answer)
        self._finish_reason = finish_reason

    def admission(self):
        return nullcontext(lambda **_: self.ready)

    async def generate(self, request, _deadline, _needs):
        for index, token in enumerate(self._tokens):
            yield Block(request.id, index, [token], denoising_steps=1, duration_s=0.1)
        yield Block(request.id, len(self._tokens), [], 1, 0.1, finish_reason=self._finish_reason)


async def answered(answer, *, stream, finish_reason="stop", **fields):
    """Returns the whole message of an answer, or all events of its stream.

    `fields` are further ones of the request.
    """
    prompts = PromptBuilder(DEMO_MODEL_PATH)
    app = FastAPI()
    app.include_router(route.router)
    worker = ScriptedWorker(prompts, answer, finish_reason)
    threads = Threads()
    constraints = Constraints(prompts.vocabulary, prompts.vocab_size, threads.prompts.run)
    app.state.services = Services(Settings(), Metrics(), worker, prompts, threads, constraints)
    tool = {"name": "f", "input_schema": {"type": "object"}}
    body = {
        "model": Settings().model,
        "max_tokens": 500,
        "messages": [user(text("Go"))],
        "tools": [tool],
        "stream": stream,
        **fields,
    }
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/v1/messages", json=body)
    if not stream:
        return response.json()
    lines = response.text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


CALL = '<|tool_call>call:f{x:<|"|>1<|"|>}<tool_call|>'
BROKEN = "<|tool_call>call:f{x:}<tool_call|>"


async def test_content_blocks_have_the_order_of_the_answer():
    answer = f"<|channel>thought\nHm.<channel|>Both:{CALL}{CALL}"
    message = await answered(answer, stream=False)
    assert [block["type"] for block in message["content"]] == [
        "thinking",
        "text",
        "tool_use",
        "tool_use",
    ]
    first, second = message["content"][2:]
    assert first["input"] == second["input"] == {"x": "1"}
    assert first["id"] != second["id"]
    events = await answered(answer, stream=True)
    blocks = [event for event in events if event["type"].startswith("content_block")]
    indices = [event["index"] for event in blocks]
    assert indices == sorted(indices)
    started = [e["content_block"] for e in blocks if e["type"] == "content_block_start"]
    assert [each["type"] for each in started] == [each["type"] for each in message["content"]]
    stopped = [e["index"] for e in blocks if e["type"] == "content_block_stop"]
    assert stopped == [0, 1, 2, 3]


@pytest.mark.parametrize("answer", [BROKEN, f"{BROKEN}{CALL}", f"{BROKEN}Sorry."])
async def test_a_call_that_is_not_json_is_an_error_and_no_part_of_it_is_sent(answer):
    with pytest.raises(GenerationFailed, match="called f with arguments"):
        await answered(answer, stream=False)
    events = await answered(answer, stream=True)
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "api_error"
    partial = [
        e["delta"].get("partial_json", "{}") for e in events if "index" in e and "delta" in e
    ]
    assert all(json.loads(each) in ({}, {"x": "1"}) for each in partial)


async def test_a_call_that_is_cut_off_is_left_out():
    answer = f'Both:{CALL}<|tool_call>call:f{{x:<|"|>2'
    message = await answered(answer, stream=False, finish_reason="length")
    assert [block["type"] for block in message["content"]] == ["text", "tool_use"]
    assert message["stop_reason"] == "max_tokens"
    events = await answered(answer, stream=True, finish_reason="length")
    started = [e["content_block"] for e in events if e["type"] == "content_block_start"]
    assert [each["type"] for each in started] == ["text", "tool_use"]
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_thought_that_the_model_never_closed_is_the_text_too_but_not_if_it_is_cut_off(
    stream,
):
    answer = "<|channel>thought\nHm. Paris."
    for reason, expected in (("stop", ["thinking", "text"]), ("length", ["thinking"])):
        made = await answered(answer, stream=stream, finish_reason=reason)
        if stream:
            started = [e["content_block"] for e in made if e["type"] == "content_block_start"]
            deltas = [e["delta"] for e in made if e["type"] == "content_block_delta"]
            text = "".join(delta.get("text", "") for delta in deltas)
        else:
            started = made["content"]
            text = "".join(block.get("text", "") for block in started)
        assert [block["type"] for block in started] == expected
        assert text == ("Hm. Paris." if "text" in expected else "")


@pytest.mark.parametrize(
    ("token", "expected"),
    [("<turn|>", ["thinking", "text"]), ("<channel|>", ["thinking"])],
)
async def test_only_end_tokens_of_the_chat_format_mean_that_the_model_has_ended_its_answer(
    token, expected
):
    answer = f"<|channel>thought\nHm. Paris.{token}"
    own = {"stop_token_ids": [SPECIAL_TOKENS[token]]}
    message = await answered(answer, stream=False, **own)
    assert [block["type"] for block in message["content"]] == expected


async def test_arguments_that_python_cannot_write_as_json_stay_as_the_model_wrote_them():
    answer = r'<|tool_call>call:f{x:1e999,y:"\ud800"}<tool_call|>'
    message = await answered(answer, stream=False)
    assert message["content"][0]["input"] == {"x": float("inf"), "y": "\ud800"}
    events = await answered(answer, stream=True)
    partial = [e["delta"] for e in events if e["type"] == "content_block_delta"]
    assert json.loads(partial[0]["partial_json"]) == message["content"][0]["input"]
