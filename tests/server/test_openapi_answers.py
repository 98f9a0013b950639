"""Real answers fit the schemas of the OpenAPI document that their server sends."""

import json
from copy import deepcopy

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

WEATHER = {
    "name": "get_weather",
    "description": "Get the weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
ANTHROPIC_WEATHER = {"name": "get_weather", "input_schema": WEATHER["parameters"]}
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
COUNT = [{"role": "user", "content": "Count to 20"}]
CHAT = "/v1/chat/completions"
TOOLS = {"tools": [{"type": "function", "function": WEATHER}], "reasoning_effort": "low"}
RESPONSE_TOOLS = {
    "tools": [{"type": "function", **WEATHER}],
    "metadata": {"a": {"b": 1}},
    "user": "me",
}
THOUGHTS = {"reasoning": {"effort": "low", "summary": "auto"}}
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
ADAPTIVE = {"thinking": {"type": "adaptive"}, "max_tokens": 100}
STREAM_OPTIONS = {"include_usage": True, "continuous_usage_stats": True, "include_drafts": True}
IDS = {"return_token_ids": True}

GENERATED = [
    (CHAT, {"messages": COUNT}),
    (CHAT, {"messages": COUNT, "n": 2, "logprobs": True, "top_logprobs": 2, "max_tokens": 3}),
    (CHAT, {"messages": QUESTION, **TOOLS}),
    (CHAT, {"messages": QUESTION, **TOOLS, **IDS, "include_reasoning": False}),
    ("/v1/completions", {"prompt": "one two", "max_tokens": 5}),
    ("/v1/completions", {"prompt": ["one", "two"], "max_tokens": 5, "logprobs": 2, **IDS}),
    ("/v1/responses", {"input": "Count to 20"}),
    ("/v1/responses", {"input": "Count to 20", "max_output_tokens": 3, **LOGPROBS}),
    ("/v1/responses", {"input": QUESTION[0]["content"], **RESPONSE_TOOLS, **THOUGHTS}),
    ("/v1/messages", {"messages": COUNT, "max_tokens": 100}),
    ("/v1/messages", {"messages": COUNT, "max_tokens": 100, "stop_sequences": ["7"]}),
    ("/v1/messages", {"messages": QUESTION, "tools": [ANTHROPIC_WEATHER], **ADAPTIVE}),
]
DECISIONS = [
    {"type": "predicate", "name": "p", "instructions": "Is it blue?"},
    {"type": "choice", "instructions": "Which?", "choices": [{"value": True}, {"value": "no"}]},
    {"type": "score", "instructions": "How?", "levels": [{"label": "low"}, {"label": "high"}]},
]
ASKED = {
    "n": {"type": "noul", "instructions": "Is it blue?"},
    "c": {"type": "choice", "instructions": "Which?", "criteria": {"a": None, "b": "the letter"}},
    "s": {"type": "score", "instructions": "How?", "criteria": ["low", "high"]},
}
OTHERS = [
    ("POST", "/v1/decisions", {"input": "The sky is blue.", "questions": DECISIONS}),
    ("POST", "/v1/systemone", {"state": "The sky is blue.", "questions": ASKED}),
    ("POST", "/v1/responses/input_tokens", {"input": "Count to 20"}),
    ("POST", "/v1/messages/count_tokens", {"messages": COUNT}),
    ("POST", "/tokenize", {"prompt": "one"}),
    ("POST", "/detokenize", {"tokens": [5, 6]}),
    *(("GET", path, None) for path in ("/", "/version", "/metrics")),
    *(("GET", path, None) for path in ("/health", "/health/live", "/health/ready")),
]


@pytest.fixture(scope="module")
def http(demo_server):
    return demo_server.http


@pytest.fixture(scope="module")
def document(http):
    return http.get("/openapi.json").json()


def content_schemas(document, method, path, status):
    """Returns the schemas of an answer by their media types."""
    operation = document["paths"][path][method.lower()]
    content = operation["responses"][str(status)]["content"]
    return {kind: each["schema"] for kind, each in content.items()}


def check(document, schema, value):
    validator = Draft202012Validator({**schema, "components": document["components"]})
    validator.validate(value)


def check_answer(document, response, path=None):
    """Check an answer that is not streamed against the document. Returns its JSON."""
    method, path = response.request.method, path or response.request.url.path
    kind = response.headers["content-type"].partition(";")[0]
    schema = content_schemas(document, method, path, response.status_code)[kind]
    value = response.json() if kind == "application/json" else response.text
    check(document, schema, value)
    return value


def events(response):
    """Returns the JSON of a stream's events."""
    lines = [line for line in response.text.split("\n") if line.startswith("data: ")]
    data = [line.removeprefix("data: ") for line in lines]
    return [json.loads(each) for each in data if each != "[DONE]"]


def event_schema(document, path):
    schema = content_schemas(document, "POST", path, 200)["text/event-stream"]
    data = schema["properties"]["data"]
    if path.endswith("/completions"):
        assert data["anyOf"][0] == {"const": "[DONE]"}
        data = data["anyOf"][1]
    return data["contentSchema"]


@pytest.mark.parametrize(("path", "body"), GENERATED)
def test_a_generated_answer_fits_its_schema(http, document, path, body):
    answer = http.post(path, json={**body, "seed": 0})
    assert answer.status_code == 200, answer.text
    check_answer(document, answer)


@pytest.mark.parametrize(("path", "body"), GENERATED)
def test_the_events_of_a_stream_fit_their_schema(http, document, path, body):
    options = {"stream_options": STREAM_OPTIONS} if "completions" in path else {}
    streamed = http.post(path, json={**body, "seed": 0, "stream": True, **options})
    assert len(events(streamed)) > 2
    for event in events(streamed):
        check(document, event_schema(document, path), event)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/messages"])
def test_the_events_of_a_stream_that_fails_fit_their_schema(demo_server, http, document, path):
    body = next(body for each, body in GENERATED if each == path)
    with demo_server.stopped_worker():  # the stream has begun when its time is up
        failed = events(http.post(path, json={**body, "stream": True, "timeout": 3}))
    assert "error" in failed[-1]
    for event in failed:
        check(document, event_schema(document, path), event)


@pytest.mark.parametrize(("method", "path", "body"), OTHERS)
def test_every_other_answer_fits_its_schema(http, document, method, path, body):
    check_answer(document, http.request(method, path, json=body))


def test_kept_responses_fit_their_schemas(http, document):
    first = http.post("/v1/responses", json={"input": QUESTION, **RESPONSE_TOOLS, **THOUGHTS})
    thought, call = first.json()["output"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    turns = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": "Hello!"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
        {**thought, "encrypted_content": "x"},
        call,
        result,
        {"type": "custom_tool_call", "call_id": "c", "name": "edit", "input": "a", "more": 1},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "b"},
        {"type": "function_call", "call_id": "d", "name": "f", "namespace": "n", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "d", "output": None},
        {"role": "user", "content": "And in Rome?"},
    ]
    last = http.post("/v1/responses", json={"input": turns, **RESPONSE_TOOLS}).json()
    path = "/v1/responses/{id}"
    assert check_answer(document, http.get(f"/v1/responses/{last['id']}"), path) == last
    listed = http.get(f"/v1/responses/{last['id']}/input_items")
    assert len(check_answer(document, listed, f"{path}/input_items")["data"]) == len(turns)
    check_answer(document, http.delete(f"/v1/responses/{last['id']}"), path)


def test_a_response_with_tools_in_a_namespace_fits_its_schema(http, document):
    tools = [{"type": "namespace", "name": "sky", "tools": RESPONSE_TOOLS["tools"]}]
    body = {"input": QUESTION, "tools": tools, "truncation": "auto", **THOUGHTS, "seed": 0}
    response = check_answer(document, http.post("/v1/responses", json=body))
    assert response["tools"][0]["type"] == "namespace"
    assert response["output"][-1]["namespace"] == "sky"
    for event in events(http.post("/v1/responses", json={**body, "stream": True})):
        check(document, event_schema(document, "/v1/responses"), event)


@pytest.mark.parametrize("headers", [{}, {"anthropic-version": "2023-06-01"}])
def test_the_model_fits_its_schemas_in_both_dialects(http, document, headers):
    check_answer(document, http.get("/v1/models", headers=headers))
    check_answer(document, http.get("/v1/models/demo", headers=headers), "/v1/models/{name}")
    absent = http.get("/v1/models/x", headers=headers)
    check_answer(document, absent, "/v1/models/{name}")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": COUNT, "colour": "red"}),
        ("/v1/responses", {"input": []}),
        ("/v1/messages", {"messages": COUNT, "max_tokens": 1, "thread": {"type": "x"}}),
    ],
)
def test_a_refusal_fits_its_schema(http, document, path, body):
    refused = http.post(path, json=body)
    assert refused.status_code == 400
    check_answer(document, refused)


def test_every_operation_has_a_schema_that_allows_no_other_fields(document):
    for path, operations in document["paths"].items():
        for method in operations:
            for kind, schema in content_schemas(document, method, path, 200).items():
                assert kind != "application/json" or closed(document, schema), (method, path)


def closed(document, schema):
    if "anyOf" in schema:
        return all(closed(document, each) for each in schema["anyOf"])
    name = schema["$ref"].rpartition("/")[2]
    return document["components"]["schemas"][name]["additionalProperties"] is False


def test_an_answer_with_one_field_more_or_less_does_not_fit(http, document):
    answer = http.post(CHAT, json={"messages": COUNT, "max_tokens": 3}).json()
    schema = content_schemas(document, "POST", CHAT, 200)["application/json"]
    for change in (
        lambda each: each.update(extra=1),
        lambda each: each["choices"][0]["message"].update(extra=1),
        lambda each: each["usage"].pop("total_tokens"),
        lambda each: each["choices"][0].pop("logprobs"),
    ):
        changed = deepcopy(answer)
        change(changed)
        with pytest.raises(ValidationError):
            check(document, schema, changed)
