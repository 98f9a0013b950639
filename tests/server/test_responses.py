"""The Responses API through the official SDK, from the trained demo model."""

import json
import signal

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent

from tests.counting import count, counted
from tests.pictures import data_url, noise_picture
from tests.server.stream_schema import strictly

# OpenAI sends the last three too, although its schema lacks them.
EXTENSIONS = {"diffusion", "store", "presence_penalty", "frequency_penalty"}

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
QUESTION = "What is the weather in Paris?"
CAPITAL = "What is the capital of France?"
THINKING = {"effort": "high", "summary": "auto"}
RESULT = json.dumps({"temperature": 21, "condition": "sunny"})
CALL = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
ANSWERED = {"type": "function_call_output", "call_id": "a", "output": "ok"}

PICTURE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}


def message(role, *parts):
    return {"role": role, "content": list(parts)}


def ask(client, input=CAPITAL, **options):
    body = {"seed": 0, **options.pop("extra_body", {})}
    return client.responses.create(model="demo", input=input, extra_body=body, **options)


def streamed(client, input=CAPITAL, **options):
    """Returns the events of a stream and the response that the SDK assembles from them."""
    extra = {"seed": 0}
    with client.responses.stream(model="demo", input=input, extra_body=extra, **options) as stream:
        return list(stream), stream.get_final_response()


def sent(http, **body):
    """Returns the names and the data of a stream's events, as they were sent."""
    body = {"input": CAPITAL, "seed": 0, "stream": True, **body}
    with http.stream("POST", "/v1/responses", json=body) as response:
        lines = [line for line in response.iter_lines() if line and not line.startswith(":")]
    assert response.headers["content-type"].startswith("text/event-stream")
    names = [line.removeprefix("event: ") for line in lines[::2]]
    return names, [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]


def official(response):
    """Returns the response without the fields that OpenAI's schema lacks."""
    return {key: value for key, value in response.items() if key not in EXTENSIONS}


def check_schema(events):
    """Check that each event fits OpenAI's schema exactly."""
    for event in events:
        response = {"response": official(event["response"])} if "response" in event else {}
        strictly(ResponseStreamEvent, {**event, **response})


def content_of(response):
    """Returns the items of an answer without their ids and without what the SDK adds."""
    items = Response.model_validate(response.to_dict()).to_dict()["output"]
    for item in items:
        for field in ("id", "call_id", "parsed_arguments"):
            item.pop(field, None)
        for part in item.get("content") or ():
            part.pop("parsed", None)
    return items


@pytest.fixture(scope="module")
def demo_http(demo_server):
    return demo_server.http


def test_a_whole_answer_fits_the_official_types_strictly(demo_http):
    body = {"input": CAPITAL, "seed": 0, "instructions": "Be brief.", "metadata": {"a": "b"}}
    answer = demo_http.post("/v1/responses", json={**body, "tools": [WEATHER], "user": "me"})
    response = strictly(Response, official(answer.json()))
    assert response.output_text == "The capital of France is Paris."
    assert (response.status, response.incomplete_details, response.error) == (
        "completed",
        None,
        None,
    )
    assert response.id.startswith("resp_")
    (message,) = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert message.id.startswith("msg_")
    assert (message.content[0].annotations, message.content[0].logprobs) == ([], [])
    assert (response.instructions, response.metadata) == ("Be brief.", {"a": "b"})
    assert (response.tool_choice, response.parallel_tool_calls) == ("auto", True)
    assert (response.temperature, response.top_p, response.user) == (1.0, 1.0, "me")
    assert (answer.json()["presence_penalty"], answer.json()["frequency_penalty"]) == (0, 0)
    assert response.tools[0].to_dict() == {**WEATHER, "strict": False}
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.usage.output_tokens_details.reasoning_tokens == 0
    assert answer.json()["diffusion"]["blocks"] == 1


def test_the_unprefixed_path_answers_the_same(demo_http):
    answer = demo_http.post("/responses", json={"input": CAPITAL}).json()
    assert demo_http.get(f"/responses/{answer['id']}").json() == answer


def test_the_events_of_a_stream_have_the_order_of_openai_without_gaps(demo_http):
    names, events = sent(demo_http, input=count(2))
    added = ["output_item.added", "content_part.added"]
    done = ["output_text.done", "content_part.done", "output_item.done"]
    deltas = ["output_text.delta"] * names.count("response.output_text.delta")
    order = ["created", "in_progress", *added, *deltas, *done, "completed"]
    assert names == [f"response.{name}" for name in order]
    assert len(deltas) > 1
    assert [event["type"] for event in events] == names
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    check_schema(events)


def test_a_stream_adds_up_to_its_last_response(demo_http):
    _, events = sent(demo_http, input=count(2))
    (item,) = events[-1]["response"]["output"]
    (part,) = item["content"]
    assert "".join(event.get("delta", "") for event in events) == part["text"]
    assert part["text"] == counted(2)
    by_type = {event["type"].removeprefix("response."): event for event in events}
    assert by_type["output_text.done"]["text"] == part["text"]
    assert by_type["content_part.done"]["part"] == part
    assert by_type["output_item.done"]["item"] == item
    begun = by_type["output_item.added"]["item"]
    assert (begun["status"], begun["content"]) == ("in_progress", [])
    assert by_type["content_part.added"]["part"]["text"] == ""
    assert {event["item_id"] for event in events if "item_id" in event} == {item["id"]}
    first, last = events[0]["response"], events[-1]["response"]
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    changed = {"status", "output", "usage", "completed_at"}
    assert {key: first[key] for key in first if key not in changed} == {
        key: last[key] for key in first if key not in changed
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"input": count(2)},
        {"input": QUESTION, "tools": [WEATHER]},
        {"reasoning": THINKING},
        {"input": QUESTION, "tools": [WEATHER], "reasoning": THINKING},
    ],
)
def test_a_stream_and_a_whole_answer_give_the_same_response_in_the_sdk(demo_client, options):
    _, final = streamed(demo_client, **options)
    whole = ask(demo_client, **options)
    assert content_of(final) == content_of(whole)
    assert final.output_text == whole.output_text
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_a_thought_is_an_item_before_the_answer(demo_client):
    response = ask(demo_client, reasoning=THINKING)
    thought, message = response.output
    assert (thought.type, thought.id[:3], message.type) == ("reasoning", "rs_", "message")
    assert [part.text for part in thought.content] == ["The user asks for a capital."]
    assert [part.text for part in thought.summary] == ["The user asks for a capital."]
    assert response.output_text == "The capital of France is Paris."
    assert 0 < response.usage.output_tokens_details.reasoning_tokens < response.usage.output_tokens
    assert response.reasoning.to_dict() == THINKING


def test_thoughts_are_off_without_effort_and_have_a_summary_on_request(demo_client):
    for options in ({}, {"effort": "none"}, {"effort": "minimal"}, {"summary": "auto"}):
        assert [item.type for item in ask(demo_client, reasoning=options).output] == ["message"]
    thought = ask(demo_client, reasoning={"effort": "low"}).output[0]
    assert (thought.summary, thought.content[0].text) == ([], "The user asks for a capital.")


def test_the_events_of_a_thought_and_a_call_come_in_order(demo_http):
    names, events = sent(demo_http, input=QUESTION, tools=[WEATHER], reasoning=THINKING)
    assert [name.removeprefix("response.") for name in names] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_summary_part.added",
        "reasoning_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    thought, call = events[-1]["response"]["output"]
    assert [event["output_index"] for event in events[2:-1]] == [0] * 10 + [1] * 4
    assert {event["item_id"] for event in events[3:11]} == {thought["id"]}
    assert {event["item_id"] for event in events[13:15]} == {call["id"]}
    assert (events[12]["item"]["arguments"], events[13]["delta"]) == ("", call["arguments"])
    assert (events[11]["item"], events[15]["item"]) == (thought, call)
    check_schema(events)


@pytest.mark.parametrize("reasoning", [None, THINKING])
def test_the_result_of_a_tool_can_be_sent_with_the_items_of_the_answer(demo_client, reasoning):
    items = [{"role": "user", "content": QUESTION}]
    options = {"tools": [WEATHER], "reasoning": reasoning, "store": False}
    first = ask(demo_client, items, **options)
    call = first.output[-1]
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    assert (call.id[:3], call.call_id[:5]) == ("fc_", "call_")
    assert json.loads(call.arguments) == {"city": "Paris"}
    assert first.status == "completed"
    items += [item.to_dict() for item in first.output]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": RESULT})
    answer = ask(demo_client, items, tools=[WEATHER], store=False)
    assert answer.output_text == "It is 21 degrees and sunny in Paris."


def test_a_response_that_the_sdk_assembled_can_be_sent_back_unchanged(demo_client):
    _, final = streamed(demo_client, QUESTION, tools=[WEATHER], store=False)
    items = [{"role": "user", "content": QUESTION}, final.output[0].to_dict()]
    call_id = final.output[0].call_id
    items.append({"type": "function_call_output", "call_id": call_id, "output": RESULT})
    _, second = streamed(demo_client, items, tools=[WEATHER], store=False)
    items += [item.to_dict() for item in second.output]
    items.append({"role": "user", "content": CAPITAL})
    assert ask(demo_client, items).output_text == "The capital of France is Paris."


@pytest.mark.parametrize("output", [RESULT, [{"type": "input_text", "text": RESULT}]])
def test_the_result_of_a_tool_can_continue_a_kept_response(demo_client, output):
    first = ask(demo_client, QUESTION, tools=[WEATHER])
    result = {
        "type": "function_call_output",
        "call_id": first.output[0].call_id,
        "output": output,
    }
    second = ask(demo_client, [result], previous_response_id=first.id, tools=[WEATHER])
    assert second.output_text == "It is 21 degrees and sunny in Paris."
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens_details.cached_tokens > 0


def test_a_conversation_continues_from_a_response_whose_predecessor_is_deleted(demo_client):
    first = ask(demo_client, "My name is Tom.")
    second = ask(demo_client, CAPITAL, previous_response_id=first.id)
    demo_client.responses.delete(first.id)
    third = ask(demo_client, "What is my name?", previous_response_id=second.id)
    assert third.output_text == "Your name is Tom."
    other = ask(demo_client, "What is my name?")
    assert other.output_text != "Your name is Tom."


def test_instructions_come_first_and_are_not_inherited(demo_client):
    plain = ask(demo_client, "Hello")
    first = ask(demo_client, "Hello", instructions="Answer truthfully.")
    assert first.usage.input_tokens > plain.usage.input_tokens
    as_item = ask(
        demo_client,
        [{"role": "system", "content": "Answer truthfully."}, {"role": "user", "content": "Hello"}],
    )
    # All of the prompt is cached, so it has exactly the same tokens.
    cached = as_item.usage.input_tokens_details.cached_tokens
    assert cached == as_item.usage.input_tokens == first.usage.input_tokens
    after_plain = ask(demo_client, CAPITAL, previous_response_id=plain.id)
    after_first = ask(demo_client, CAPITAL, previous_response_id=first.id)
    assert after_first.usage.input_tokens == after_plain.usage.input_tokens
    assert after_first.instructions is None


def test_every_form_of_a_message_is_read_in_the_same_way(demo_client):
    part = {"type": "input_text", "text": "My name is Tom."}
    answer = "Nice to meet you, Tom!"
    parts = [
        [{"type": "output_text", "text": answer, "annotations": [], "logprobs": []}],
        [{"type": "refusal", "refusal": answer}],
        answer,
    ]
    users = [
        {"role": "user", "content": "My name is Tom."},
        {"type": "message", "role": "user", "content": [part]},
    ]
    counts = set()
    for user in users:
        for content in parts:
            turn = {"role": "assistant", "content": content, "phase": "final_answer"}
            question = {"role": "user", "content": "What is my name?", "status": "completed"}
            response = ask(demo_client, [user, turn, question])
            assert response.output_text == "Your name is Tom."
            counts.add(response.usage.input_tokens)
    assert len(counts) == 1


def test_an_answer_that_is_cut_off_is_incomplete(demo_client, demo_http):
    whole = ask(demo_client, count(2), max_output_tokens=5)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (whole.output[0].status, whole.usage.output_tokens) == ("incomplete", 5)
    assert whole.max_output_tokens == 5
    names, events = sent(demo_http, input=count(2), max_output_tokens=5)
    assert names[-1] == "response.incomplete"
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == whole.output_text


def test_every_token_of_the_text_has_log_probabilities(demo_client, demo_http):
    options = {
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "reasoning": THINKING,
    }
    response = ask(demo_client, **options)
    figures = response.output[1].content[0].logprobs
    assert "".join(figure.token for figure in figures) == response.output_text
    assert all(len(figure.top_logprobs) == 2 for figure in figures)
    _, events = sent(demo_http, **options)
    check_schema(events[:2] + events[-1:])
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    last = events[-1]["response"]["output"][1]["content"][0]
    assert [figure for event in deltas for figure in event["logprobs"]] == last["logprobs"]
    assert last["logprobs"] == [figure.to_dict() for figure in figures]


def test_one_call_is_made_without_parallel_tool_calls(demo_client):
    response = ask(demo_client, QUESTION, tools=[WEATHER], parallel_tool_calls=False)
    assert [item.type for item in response.output] == ["function_call"]
    assert response.parallel_tool_calls is False


def test_no_tool_is_called_with_the_choice_none(demo_client):
    response = ask(demo_client, QUESTION, tools=[WEATHER], tool_choice="none")
    assert response.output_text == "I cannot look up the weather without a tool."
    assert response.tool_choice == "none"


def test_tools_of_other_types_are_skipped(demo_client):
    others = [
        {"type": "local_shell"},
        {"type": "web_search", "external_web_access": False},
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
        {"type": "namespace", "name": "n", "tools": []},
        {"type": "of_next_year", "anything": [1]},
    ]
    without = ask(demo_client, QUESTION)
    skipped = ask(demo_client, QUESTION, tools=others)
    assert skipped.usage.input_tokens == without.usage.input_tokens
    assert [tool.type for tool in skipped.tools] == ["namespace"]
    beside = ask(demo_client, QUESTION, tools=[*others, WEATHER])
    assert [tool.type for tool in beside.tools] == ["namespace", "function"]
    assert beside.output[0].name == "get_weather"


def test_a_request_of_codex_is_answered(demo_http):
    """The request has every field that Codex sends."""
    user = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": QUESTION}],
    }
    body = {
        "model": "demo",
        "instructions": "You are a coding agent.",
        "input": [
            {
                "type": "message",
                "role": "developer",
                "content": [{"type": "input_text", "text": "Sandbox: none."}],
            },
            user,
            {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
            {
                "type": "function_call",
                "name": "get_weather",
                "arguments": '{"city": "Paris"}',
                "call_id": "call_1",
            },
            {"type": "function_call_output", "call_id": "call_1", "output": RESULT},
        ],
        "tools": [
            {**WEATHER, "strict": False},
            {"type": "local_shell"},
            {"type": "custom", "name": "apply_patch", "description": "d", "format": {}},
            {"type": "web_search", "external_web_access": True},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "none", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199-cafe",
        "client_metadata": {"x-codex-installation-id": "0199"},
        "text": {"verbosity": "medium"},
    }
    names, events = sent(demo_http, **body)
    assert names[-1] == "response.completed"
    last = events[-1]["response"]
    assert last["output"][0]["content"][0]["text"] == "It is 21 degrees and sunny in Paris."
    assert (last["store"], last["prompt_cache_key"]) == (False, "0199-cafe")


def test_a_kept_response_can_be_retrieved_until_it_is_deleted(demo_client):
    for response in (ask(demo_client), streamed(demo_client)[1]):
        assert demo_client.responses.retrieve(response.id).output_text == response.output_text
        demo_client.responses.delete(response.id)
        for request in (demo_client.responses.retrieve, demo_client.responses.delete):
            with pytest.raises(openai.NotFoundError, match=response.id):
                request(response.id)
        with pytest.raises(openai.BadRequestError, match=response.id) as error:
            ask(demo_client, previous_response_id=response.id)
        assert error.value.code == "previous_response_not_found"


def test_a_response_with_store_false_is_not_kept(demo_client):
    response = ask(demo_client, store=False)
    assert response.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        demo_client.responses.retrieve(response.id)


def test_a_kept_response_cannot_be_streamed_again(demo_client):
    response = ask(demo_client)
    with pytest.raises(openai.BadRequestError, match="stream"):
        demo_client.responses.retrieve(response.id, stream=True)


def test_items_can_be_referenced_by_their_ids(demo_client):
    first = ask(demo_client, QUESTION, tools=[WEATHER])
    (user,) = demo_client.responses.input_items.list(first.id).data
    call = first.output[0]
    items = [
        {"type": "item_reference", "id": user.id},
        {"id": call.id},
        {"type": "function_call_output", "call_id": call.call_id, "output": RESULT},
    ]
    answer = ask(demo_client, items, tools=[WEATHER])
    assert answer.output_text == "It is 21 degrees and sunny in Paris."
    with pytest.raises(openai.NotFoundError, match="msg_nowhere") as error:
        ask(demo_client, [{"type": "item_reference", "id": "msg_nowhere"}])
    assert error.value.param == "input.0.id"


def test_input_items_are_listed_page_by_page(demo_client, demo_http):
    first = ask(demo_client, "My name is Tom.")
    second = ask(demo_client, CAPITAL, previous_response_id=first.id)
    path = f"/v1/responses/{second.id}/input_items"
    listed = strictly(ResponseItemList, demo_http.get(path, params={"order": "asc"}).json())
    assert [item.content[0].text for item in listed.data] == [
        "My name is Tom.",
        "Nice to meet you, Tom!",
        CAPITAL,
    ]
    assert (listed.first_id, listed.last_id) == (listed.data[0].id, listed.data[-1].id)
    page = demo_client.responses.input_items.list(second.id, limit=1)
    assert [item.id for item in page.data] == [listed.data[2].id]
    assert [item.id for item in page] == [item.id for item in reversed(listed.data)]
    for bad in ({"limit": "0"}, {"limit": "many"}, {"after": "msg_nowhere"}):
        answer = demo_http.get(path, params=bad)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(bad)))


def test_a_setting_limits_the_number_of_kept_responses(limited_server):
    url = f"{limited_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        first, second = (client.responses.create(input="hi", max_output_tokens=1) for _ in "ab")
        assert client.responses.retrieve(second.id).id == second.id
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)


def test_a_failure_in_a_stream_is_an_event_that_the_sdk_raises(demo_client, demo_http, demo_server):
    failing = {"timeout": 0.3}
    with demo_server.stopped_worker():
        with pytest.raises(openai.APIStatusError, match="longer than allowed") as error:
            ask(demo_client, extra_body=failing)
        assert error.value.status_code == 504
        with pytest.raises(openai.APIError, match="longer than allowed"):
            list(ask(demo_client, stream=True, extra_body=failing))
        names, raw = sent(demo_http, **failing)
    assert names[-2:] == ["response.failed", "error"]
    assert [event["sequence_number"] for event in raw] == list(range(len(raw)))
    check_schema(raw[:-1])
    failed = raw[-2]["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    assert "longer than allowed" in failed["error"]["message"]
    assert raw[-1]["code"] == raw[-1]["error"]["code"] == "deadline_exceeded"
    assert demo_http.get(f"/v1/responses/{failed['id']}").status_code == 404


def test_a_stream_cut_by_a_shutdown_ends_with_an_error_event(start_server):
    server = start_server(EASEL_SHUTDOWN_GRACE_S="1").wait_until_ready()
    body = {"input": "hi", "ignore_eos": True, "stream": True}
    url = f"{server.url}/v1/responses"
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        with server.stopped_worker():
            server.process.send_signal(signal.SIGTERM)
            *_, name, data = lines
    assert name == "event: error"
    event = json.loads(data.removeprefix("data: "))
    assert event["type"] == "error"
    assert event["code"] == event["error"]["code"] == "not_ready"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [message("user", {"type": "input_image"})]}, "input.0.content.0"),
        (
            {"input": [message("user", {"type": "input_image", "file_id": "f"})]},
            "input.0.content.0",
        ),
        ({"input": [message("system", PICTURE)]}, "input.0.content"),
        ({"input": [message("user", {"type": "input_file"})]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": "x"}, ANSWERED]}, "input.1.call_id"),
        ({"input": [{"type": "reasoning", "summary": "x"}]}, "input.0.summary"),
        ({"instructions": ["x"]}, "instructions"),
        ({"previous_response_id": "resp_nowhere"}, "previous_response_id"),
        ({"model": "other"}, "model"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tools": [{"name": "f"}]}, "tools.0.type"),
        ({"tools": [{**WEATHER, "name": "a b"}]}, "tools.0.name"),
        (
            {"tools": [{**WEATHER, "parameters": {"type": "objekt"}, "strict": True}]},
            "tools.0.parameters",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "get_weather"}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "x", "tools": []}}, "tool_choice.mode"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
            "tool_choice.tools",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
            "text.format.schema",
        ),
        ({"access_programs": {}}, "access_programs"),
        ({"background": True}, "background"),
        ({"background_options": {}}, "background_options"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"image": {}}, "image"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"max_denoising_steps": 0}, "max_denoising_steps"),
        ({"stop": "x"}, "stop"),
        ({"n": 2}, "n"),
    ],
)
def test_the_refusal_of_an_unsupported_value_names_it(http, change, param):
    answer = http.post("/v1/responses", json={"input": "hi", **change})
    assert answer.status_code == (404 if param == "model" else 400)
    assert answer.json()["error"]["param"] == param


def test_values_that_have_no_effect_are_accepted(http):
    neutral = {
        "background": False,
        "context_management": [],
        "include": ["web_search_call.action.sources", "reasoning.encrypted_content"],
        "max_tool_calls": None,
        "reasoning": {"context": "auto", "mode": "standard", "generate_summary": "concise"},
        "safety_identifier": "me",
        "service_tier": "auto",
        "stream_options": None,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "top_logprobs": 0,
        "truncation": "disabled",
    }
    answer = http.post("/v1/responses", json={"input": "hi", "max_output_tokens": 1, **neutral})
    assert answer.status_code == 200
    assert answer.json()["reasoning"] == {"effort": None, "summary": "concise"}


def test_a_model_without_vision_names_the_image_that_it_refuses(http):
    parts = [{"type": "input_image", "image_url": data_url(noise_picture(8, 8))}]
    answer = http.post("/v1/responses", json={"input": [{"role": "user", "content": parts}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input.0.content.0.image_url"
    assert "takes no images" in answer.json()["error"]["message"]


def test_the_refusal_of_a_prompt_longer_than_the_context_names_the_input(http):
    error = http.post("/v1/responses", json={"input": "x y " * 3000}).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    assert error["message"].startswith("This model's maximum context length is 2048 tokens.")


def test_counted_tokens_are_those_of_the_usage(demo_client):
    first = ask(demo_client, "Hello!", instructions="Be brief.")
    for options in (
        {"input": QUESTION},
        {"input": [message("user", {"type": "input_text", "text": QUESTION})]},
        {"input": QUESTION, "tools": [WEATHER], "instructions": "Be brief."},
        {"input": QUESTION, "reasoning": {"effort": "high"}, "tool_choice": "none"},
        {"input": "And then?", "previous_response_id": first.id},
    ):
        counted = demo_client.responses.input_tokens.count(model="demo", **options)
        assert counted.object == "response.input_tokens"
        assert counted.input_tokens == ask(demo_client, **options).usage.input_tokens


def test_tokens_are_counted_for_any_body_that_asks_for_a_response(demo_http):
    count = "/v1/responses/input_tokens"
    body = {"input": QUESTION, "max_output_tokens": 5, "temperature": 0, "store": False}
    assert demo_http.post(count, json=body).status_code == 200
    assert demo_http.post("/responses/input_tokens", json={"input": None}).status_code == 200
    for change, param, status in (
        ({"stream": True}, "stream", 400),
        ({"personality": "friendly"}, None, 200),
        ({"model": "other"}, "model", 404),
        ({"previous_response_id": "resp_0"}, "previous_response_id", 400),
        ({"input": [CALL]}, None, 200),
        ({"input": [{"type": "item_reference", "id": "msg_0"}]}, "input.0.id", 404),
    ):
        answer = demo_http.post(count, json={**body, **change})
        assert answer.status_code == status
        assert status == 200 or answer.json()["error"]["param"] == param


@pytest.mark.parametrize("path", ["/v1/responses/compact", "/responses/resp_0/cancel"])
def test_endpoints_that_are_not_supported_are_refused_by_name(demo_http, path):
    refused = demo_http.post(path, json={"model": "demo", "input": QUESTION})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (404, "unsupported_endpoint")
    assert path.rpartition("/")[2] in error["message"]
    assert "is not supported: " in error["message"]
