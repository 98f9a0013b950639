"""Predicted outputs over HTTP: fewer steps, the same answers, and what the usage says."""

import json

import pytest

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
COUNT = {"messages": [{"role": "user", "content": "Count to 20"}], "seed": 3}
NUMBERS = ", ".join(str(number) for number in range(1, 21))


@pytest.fixture(scope="module")
def http(demo_server):
    return demo_server.http


def answer(http, path, body, content=None, **more):
    predicted = {} if content is None else {"prediction": {"type": "content", "content": content}}
    response = http.post(path, json={**body, **predicted, **more})
    assert response.status_code == 200, response.text
    return response.json()


def text(whole):
    return whole["choices"][0]["message"]["content"]


def details(whole):
    return whole["usage"]["completion_tokens_details"]


@pytest.mark.parametrize(
    "content",
    [NUMBERS, [{"type": "text", "text": NUMBERS[:30]}, {"type": "text", "text": NUMBERS[30:]}]],
)
def test_a_right_prediction_saves_steps_and_all_of_it_is_accepted(http, content):
    plain, predicted = answer(http, CHAT, COUNT), answer(http, CHAT, COUNT, content)
    assert text(predicted) == text(plain) == NUMBERS
    assert predicted["diffusion"]["denoising_steps"] < plain["diffusion"]["denoising_steps"]
    tokens = http.post("/tokenize", json={"prompt": NUMBERS, "add_special_tokens": False}).json()
    assert details(predicted)["accepted_prediction_tokens"] == tokens["count"]
    assert details(predicted)["rejected_prediction_tokens"] == 0
    assert "accepted_prediction_tokens" not in details(plain)


def test_tokens_that_the_answer_does_not_have_are_rejected(http):
    predicted = answer(http, CHAT, COUNT, NUMBERS.replace(" 7,", " banana,"))
    assert text(predicted) == NUMBERS
    assert details(predicted)["rejected_prediction_tokens"] > 0
    assert details(predicted)["accepted_prediction_tokens"] > 0


@pytest.mark.parametrize("nothing", ["", [], [{"type": "text", "text": ""}]])
def test_an_empty_prediction_asks_for_nothing(http, nothing):
    plain, empty = answer(http, CHAT, COUNT), answer(http, CHAT, COUNT, nothing)
    assert text(empty) == text(plain)
    assert empty["usage"]["completion_tokens_details"] == details(plain)
    assert empty["diffusion"]["denoising_steps"] == plain["diffusion"]["denoising_steps"]


def test_each_of_several_answers_has_the_prediction(http):
    predicted = answer(http, CHAT, COUNT, NUMBERS, n=2)
    assert [choice["message"]["content"] for choice in predicted["choices"]] == [NUMBERS] * 2
    single = answer(http, CHAT, COUNT, NUMBERS)
    accepted = details(single)["accepted_prediction_tokens"]
    assert details(predicted)["accepted_prediction_tokens"] == 2 * accepted


def test_a_stream_with_usage_counts_the_prediction(demo_client):
    stream = demo_client.chat.completions.create(
        model="demo",
        stream=True,
        stream_options={"include_usage": True},
        prediction={"type": "content", "content": NUMBERS},
        **COUNT,
    )
    *_, last = stream
    assert last.usage.completion_tokens_details.accepted_prediction_tokens > 0
    assert last.usage.completion_tokens_details.rejected_prediction_tokens == 0


def test_a_prediction_of_nonsense_that_must_be_json_gives_valid_json(http):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    body = {"messages": [{"role": "user", "content": "JSON for Anna, 31, from Paris"}], "seed": 1}
    made = answer(http, CHAT, body, '{"no": [1, 2, "x"]} and more' * 5, response_format=form)
    if made["choices"][0]["finish_reason"] == "stop":
        assert json.loads(text(made)).keys() == {"name", "age"}
    assert details(made)["rejected_prediction_tokens"] > 0


def test_a_thought_comes_before_what_is_predicted(http):
    body = {**COUNT, "reasoning_effort": "high"}
    plain, predicted = answer(http, CHAT, body), answer(http, CHAT, body, NUMBERS)
    assert text(predicted) == text(plain)
    assert details(predicted)["reasoning_tokens"] == details(plain)["reasoning_tokens"] > 0
    assert details(predicted)["accepted_prediction_tokens"] > 0


def test_a_completion_between_prompt_and_suffix_has_a_prediction(http):
    body = {"prompt": "1, 2, 3,", "suffix": " 6, 7, 8", "max_tokens": 4, "seed": 1}
    plain, predicted = (answer(http, COMPLETIONS, body, content) for content in (None, " 4, 5,"))
    assert plain["usage"]["completion_tokens"] <= 4
    assert predicted["usage"]["completion_tokens"] <= 4
    counts = details(predicted)
    tokens = http.post("/tokenize", json={"prompt": " 4, 5,", "add_special_tokens": False}).json()
    sums = counts["accepted_prediction_tokens"] + counts["rejected_prediction_tokens"]
    assert sums == tokens["count"]


@pytest.mark.parametrize(
    ("prediction", "param"),
    [
        ({"type": "text", "content": "x"}, "prediction.type"),
        ({"type": "content"}, "prediction.content"),
        ({"type": "content", "content": 7}, "prediction.content"),
        ({"type": "content", "content": [{"type": "image_url"}]}, "prediction.content.0.type"),
        ({"type": "content", "content": "1, " * 3000}, "prediction"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_wrong_prediction_is_refused_by_name(http, path, prediction, param):
    body = COUNT if path == CHAT else {"prompt": "one"}
    response = http.post(path, json={**body, "prediction": prediction})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
