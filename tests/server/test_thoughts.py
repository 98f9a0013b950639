"""Budgets of thoughts and their end from outside, over HTTP, by the trained demo model.

Where a thought must not end by itself, its closing mark is biased away.
"""

import json

import anthropic
import httpx
import jsonschema
import openai
import pytest

from app.prompting.vocabulary import Vocabulary
from engine.config import DEMO_MODEL_PATH

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
CONTROL = "/v1/chat/completions/control"
OPEN, CLOSE = Vocabulary(DEMO_MODEL_PATH / "tokenizer.json").control_ids(
    ["<|channel>", "<channel|>"]
)
LEAST = 4  # tokens of a thought without text: two marks and its header
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "sure": {"type": "boolean"}},
    "required": ["city", "sure"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def canvas(demo_server):
    """The length of a block."""
    (model,) = demo_server.http.get("/v1/models").json()["data"]
    return model["canvas_length"]


def endless(tokens=120, **options):
    """Returns the fields of a request whose thought would not end within its tokens."""
    return {
        "model": "demo",
        "messages": CAPITAL,
        "seed": 3,
        "max_tokens": tokens,
        "min_tokens": tokens,
        "reasoning_effort": "high",
        "logit_bias": {str(CLOSE): -100},
        "max_denoising_steps": 4,  # without sense, an answer settles late
        "return_token_ids": True,
        **options,
    }


def made(server, body):
    answer = server.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(server, body):
    """Returns the deltas' fields, each joined for each choice, and the usage of a stream."""
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    choices, usage = {}, None
    for chunk in chunks(server.http, body):
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            joined = choices.setdefault(choice["index"], {})
            for field, text in choice["delta"].items():
                if isinstance(text, str):
                    joined[field] = joined.get(field, "") + text
    return choices, usage


def chunks(http, body):
    """Yields the data of a stream's events."""
    with http.stream("POST", "/v1/chat/completions", json=body) as stream:
        yield from data_of(stream)


def data_of(stream):
    for line in stream.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def reasoning_tokens(answer):
    return answer["usage"]["completion_tokens_details"]["reasoning_tokens"]


@pytest.mark.parametrize("blocks", [0, 1, 2])
@pytest.mark.parametrize("more", [-1, 0, 1, 7])
def test_a_thought_has_as_many_tokens_as_its_budget(demo_server, canvas, blocks, more):
    budget = blocks * canvas + more
    if budget < 1:
        budget = 1
    body = endless(3 * canvas, thinking_budget=budget)
    before = closed(demo_server, "budget")
    answer = made(demo_server, body)
    (choice,) = answer["choices"]
    assert reasoning_tokens(answer) == max(budget, LEAST)
    assert choice["token_ids"].index(CLOSE) == max(budget, LEAST) - 1
    assert OPEN not in choice["token_ids"][max(budget, LEAST) :]
    assert len(choice["token_ids"]) == 3 * canvas
    assert choice["finish_reason"] in ("length", "stop")
    assert choice["message"]["content"]
    assert closed(demo_server, "budget") == before + 1
    assert bool(choice["message"].get("reasoning")) == (budget > LEAST)
    joined, usage = streamed(demo_server, body)
    assert joined[0]["content"] == choice["message"]["content"]
    assert joined[0].get("reasoning") == choice["message"].get("reasoning")
    assert counts(usage) == counts(answer["usage"])


def counts(usage):
    """Returns the counts that do not depend on the prefixes that were kept."""
    return {field: count for field, count in usage.items() if field != "prompt_tokens_details"}


def closed(server, reason):
    return server.metrics().get(("easel_thoughts_closed_total", reason), 0.0)


def test_a_thought_that_ends_within_its_budget_is_left_alone(demo_server):
    body = {"messages": CAPITAL, "seed": 3, "max_tokens": 200, "reasoning_effort": "high"}
    free = made(demo_server, body)
    bounded = made(demo_server, {**body, "thinking_budget": 190})
    assert 6 < reasoning_tokens(free) < 190
    assert bounded["choices"] == free["choices"]
    assert counts(bounded["usage"]) == counts(free["usage"])


NAMES = {
    "thinking_budget": 20,
    "thinking_token_budget": 20,
    "thinking_budget_tokens": 20,
    "reasoning_budget_tokens": 20,
    "thinking": {"type": "enabled", "budget_tokens": 20},
    "reasoning": {"max_tokens": 20},
    "chat_template_kwargs": {"thinking_budget": 20},
}


@pytest.mark.parametrize("name", NAMES)
def test_each_name_of_a_budget_sets_it_and_switches_thinking_on(demo_server, name):
    body = endless(40, **{name: NAMES[name]})
    del body["reasoning_effort"]
    assert reasoning_tokens(made(demo_server, body)) == 20


@pytest.mark.parametrize(
    "options",
    [
        {"thinking_budget": 0, "reasoning_effort": "high"},
        {"thinking": {"type": "enabled", "budget_tokens": 0}},
        {"reasoning": {"effort": "high", "max_tokens": 0}},
        {"thinking_budget": 500, "enable_thinking": False},
    ],
)
def test_with_a_budget_of_0_the_prompt_is_the_one_without_thinking(demo_server, options):
    body = {"messages": CAPITAL, "seed": 3}
    plain, without = made(demo_server, body), made(demo_server, {**body, **options})
    assert without["choices"] == plain["choices"]
    assert counts(without["usage"]) == counts(plain["usage"])
    count = [
        demo_server.http.post("/tokenize", json=each).json()["tokens"]
        for each in ({"messages": CAPITAL}, {"messages": CAPITAL, **options})
    ]
    assert count[0] == count[1]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"thinking_budget": 5, "thinking_token_budget": 6}, "thinking_token_budget"),
        ({"thinking_budget": 5, "reasoning": {"max_tokens": 6}}, "reasoning"),
        ({"thinking_budget": -2}, "thinking_budget"),
        ({"thinking_budget": 1.5}, "thinking_budget"),
        ({"reasoning": {"max_tokens": -2}}, "reasoning.max_tokens"),
        ({"chat_template_kwargs": {"thinking_budget": "5"}}, "chat_template_kwargs"),
    ],
)
def test_budgets_that_are_none_or_contradict_each_other_are_refused(demo_server, options, field):
    refused = demo_server.http.post("/v1/chat/completions", json={"messages": CAPITAL, **options})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == field


def test_a_budget_of_minus_1_is_none(demo_server):
    body = {"messages": CAPITAL, "seed": 3, "reasoning_effort": "high"}
    assert (
        made(demo_server, {**body, "thinking_budget": -1})["choices"]
        == (made(demo_server, body)["choices"])
    )


def test_each_choice_has_the_budget_for_itself(demo_server):
    answer = made(demo_server, endless(60, thinking_budget=11, n=3))
    assert [choice["token_ids"].index(CLOSE) for choice in answer["choices"]] == [10, 10, 10]
    assert reasoning_tokens(answer) == 33
    choices, usage = streamed(demo_server, endless(60, thinking_budget=11, n=3))
    assert counts(usage) == counts(answer["usage"])
    for index, choice in choices.items():
        assert choice["content"] == answer["choices"][index]["message"]["content"]


@pytest.mark.parametrize("budget", [None, 1, 11, 500])
def test_a_form_is_held_behind_a_thought_that_is_closed(demo_server, budget):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    body = endless(80, response_format=form, thinking_budget=budget)
    del body["min_tokens"]  # the form wins over it
    before = {reason: closed(demo_server, reason) for reason in ("budget", "form")}
    answer = made(demo_server, body)
    (choice,) = answer["choices"]
    jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
    assert choice["finish_reason"] == "stop"
    reason = "budget" if budget in (1, 11) else "form"
    assert closed(demo_server, reason) == before[reason] + 1
    if reason == "budget":
        assert reasoning_tokens(answer) == max(budget, LEAST)


@pytest.mark.parametrize("budget", [None, 1, 11])
def test_a_demanded_call_comes_behind_a_thought_that_is_closed(demo_server, budget):
    body = endless(80, tools=[TOOL], tool_choice="required", thinking_budget=budget)
    del body["min_tokens"]
    (choice,) = made(demo_server, body)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    for call in choice["message"]["tool_calls"]:
        jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)


@pytest.mark.parametrize("budget", [1, 6])
def test_a_budget_of_the_messages_api_is_kept(demo_server, budget):
    fields = {
        "model": "demo",
        "max_tokens": 60,
        "messages": CAPITAL,
        "thinking": {"type": "enabled", "budget_tokens": budget},
        "extra_body": {"seed": 3},
    }
    with anthropic.Anthropic(base_url=demo_server.url, api_key="none") as sdk:
        message = sdk.messages.create(**fields)
        with sdk.messages.stream(**fields) as stream:
            other = stream.get_final_message()
    assert message.usage.output_tokens_details.thinking_tokens == max(budget, LEAST)
    assert [block.type for block in message.content][-1] == "text"
    assert [block.to_dict() for block in other.content] == [b.to_dict() for b in message.content]
    assert other.usage.output_tokens == message.usage.output_tokens


@pytest.mark.parametrize(
    "options",
    [
        {"reasoning": {"effort": "high"}, "extra_body": {"thinking_budget": 6}},
        {"reasoning": {"max_tokens": 6}},
    ],
)
def test_a_budget_of_the_responses_api_is_kept(demo_server, options):
    fields = {"model": "demo", "input": CAPITAL, "max_output_tokens": 60, **options}
    fields["extra_body"] = {"seed": 3, **options.get("extra_body", {})}
    with openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="none") as sdk:
        response = sdk.responses.create(**fields)
        events = [*sdk.responses.create(**fields, stream=True)]
    assert response.usage.output_tokens_details.reasoning_tokens == 6
    assert response.output[-1].type == "message"
    assert events[-1].response.output_text == response.output_text
    counted = events[-1].response.usage
    assert counted.output_tokens_details == response.usage.output_tokens_details


def test_the_setting_is_the_budget_of_requests_that_set_none(shared_server):
    server = shared_server(EASEL_MODEL="demo", EASEL_THINKING_BUDGET="9")
    assert reasoning_tokens(made(server, endless(50))) == 9
    assert reasoning_tokens(made(server, endless(50, thinking_budget=12))) == 12
    answer = server.http.post(
        "/v1/messages",
        json={"max_tokens": 50, "messages": CAPITAL, "thinking": {"type": "adaptive"}},
    ).json()
    assert answer["usage"]["output_tokens_details"]["thinking_tokens"] <= 9
    plain = made(server, {"messages": CAPITAL, "seed": 3})
    assert reasoning_tokens(plain) == 0


def end_thought(server, answer_id, **more):
    return server.http.post(CONTROL, json={"id": answer_id, "action": "reasoning_end", **more})


@pytest.mark.parametrize("n", [1, 2])
def test_a_thought_is_ended_from_outside_while_its_answer_is_streamed(demo_server, n):
    tokens, before = 600, closed(demo_server, "client")
    body = endless(tokens, n=n, stream=True, stream_options={"include_usage": True})
    thought, said, usage, ended = "", "", None, False
    with httpx.Client(base_url=demo_server.url, timeout=60) as http:
        for chunk in chunks(http, body):
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                thought += choice["delta"].get("reasoning", "")
                said += choice["delta"].get("content", "")
            if thought and not ended:
                ended = True
                with demo_server.stopped_worker():
                    answer = end_thought(demo_server, chunk["id"])
                assert (answer.status_code, answer.json()) == (200, {"success": True})
    assert said.strip()
    assert usage["completion_tokens_details"]["reasoning_tokens"] < n * tokens // 2
    assert usage["completion_tokens"] == n * tokens
    assert closed(demo_server, "client") == before + n
    late = end_thought(demo_server, chunk["id"])
    assert late.json() == {"success": False, "message": "no active completion for this id"}


def test_a_thought_of_the_messages_api_can_be_ended_before_it_begins(demo_server):
    body = {
        "max_tokens": 60,
        "messages": CAPITAL,
        "thinking": {"type": "adaptive"},
        "stream": True,
    }
    with (
        httpx.Client(base_url=demo_server.url, timeout=60) as http,
        http.stream("POST", "/v1/messages", json=body) as stream,
    ):
        events = data_of(stream)
        with demo_server.stopped_worker():
            started = next(events)["message"]
            for _ in range(2):  # a second time changes nothing
                assert end_thought(demo_server, started["id"]).json() == {"success": True}
        blocks = [each["delta"]["type"] for each in events if each["type"] == "content_block_delta"]
    assert "text_delta" in blocks
    assert "thinking_delta" not in blocks


def test_an_answer_that_has_left_its_thought_has_none_to_end(demo_server):
    body = endless(600, thinking_budget=1, stream=True)
    with httpx.Client(base_url=demo_server.url, timeout=60) as http:
        for chunk in chunks(http, body):
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                with demo_server.stopped_worker():
                    answer = end_thought(demo_server, chunk["id"]).json()
                break
    demo_server.wait_until_idle()
    assert answer["success"] is False
    assert "no thought" in answer["message"]


@pytest.mark.parametrize("answer_id", ["", "chatcmpl-1", "chatcmpl-" + 32 * "0", "a b"])
def test_an_unknown_answer_has_nothing_to_end(demo_server, answer_id):
    answer = end_thought(demo_server, answer_id, model="demo")
    assert (answer.status_code, answer.json()["success"]) == (200, False)
    assert answer.json()["message"] == "no active completion for this id"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"action": "reasoning_end"}, "id"),
        ({"id": 5, "action": "reasoning_end"}, "id"),
        ({"id": "chatcmpl-1"}, "action"),
        ({"id": "chatcmpl-1", "action": "stop"}, "action"),
        ({"id": "chatcmpl-1", "action": "reasoning_end", "more": 1}, "more"),
    ],
)
def test_a_wrong_control_request_is_refused_by_the_name_of_its_field(demo_server, body, field):
    refused = demo_server.http.post(CONTROL, json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == field
