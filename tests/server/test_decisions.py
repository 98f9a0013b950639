"""Decisions over HTTP: through the official SDK, and as JevBench asks them."""

import asyncio
import json
import math
import re
from pathlib import Path

import httpx
import jevbench
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import Decision

from demo.network import new_config, new_model
from demo.tokenizer import build_tokenizer
from demo.train import save
from tests.parity.tiny_models import write_image_processor
from tests.pictures import data_url, noise_picture
from tests.server.stream_schema import strictly

QUESTIONS = [
    {"type": "predicate", "name": "blue", "instructions": "Is the sky blue?"},
    {
        "type": "choice",
        "name": "colour",
        "instructions": "Which colour is it?",
        "choices": [{"value": "blue"}, {"value": True}, {"value": "true", "description": "odd"}],
    },
    {
        "type": "score",
        "instructions": "How blue is it?",
        "levels": [{"label": "pale"}, {"label": "deep", "description": "very blue"}],
    },
]
STATE = "The sky is blue."
ASKED = {
    "blue": {"type": "noul", "instructions": "Is the sky blue?"},
    "colour": {"type": "choice", "instructions": "Which?", "criteria": {"blue": None, "red": "r"}},
    "depth": {"type": "score", "instructions": "How blue?", "criteria": ["pale", "mid", "deep"]},
}


@pytest.fixture(scope="module")
def server(shared_server):
    """A server with random weights, which put little on any label, and no bound for that."""
    return shared_server(EASEL_LEAST_LABEL_MASS="0")


@pytest.fixture(scope="module")
def http(server):
    return server.http


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(http):
    return http.get("/v1/models").json()["data"][0]["id"]


def decide(http, status=200, path="/v1/decisions", **body):
    response = http.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


def ask(http, status=200, **body):
    return decide(http, status, "/v1/systemone", **{"state": STATE, "questions": ASKED, **body})


def shares(answer):
    """Returns the probabilities of a typed answer of either dialect."""
    match answer:
        case {"probability": share} | {"noul": share}:
            return [share, 1 - share]
        case {"probabilities": list(several)}:
            return [each["probability"] for each in several]
        case {"probabilities": dict(several)}:
            return list(several.values())
    raise AssertionError(answer)


def test_the_sdk_reads_typed_answers_in_the_order_of_their_questions(client, model):
    made = client.decisions.create(model=model, input=STATE, questions=QUESTIONS)
    strictly(Decision, made.model_dump())
    predicate, choice, score = made.answers
    assert [answer.name for answer in made.answers] == ["blue", "colour", None]
    assert 0 <= predicate.probability <= 1
    assert [each.value for each in choice.probabilities] == ["blue", True, "true"]
    assert choice.choice in ("blue", True, "true")
    assert [(each.value, each.label) for each in score.probabilities] == [(0, "pale"), (1, "deep")]
    assert score.score == pytest.approx(score.probabilities[1].probability)
    assert made.usage.output_tokens == 3
    assert made.usage.total_tokens == made.usage.input_tokens + 3


def test_the_async_sdk_gets_the_same_answers_for_eight_requests_at_once(server, client, model):
    made = client.decisions.create(model=model, input=STATE, questions=QUESTIONS)

    async def several():
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as asynchronous:
            create = asynchronous.decisions.create
            asked = (create(model=model, input=STATE, questions=QUESTIONS) for _ in range(8))
            return await asyncio.gather(*asked)

    assert [each.answers for each in asyncio.run(several())] == [made.answers] * 8


ITEMS = [
    {"role": "developer", "content": "Be strict."},
    {"role": "user", "content": [{"type": "input_json", "data": {"sky": ["blue"]}}]},
    {"type": "function_call", "call_id": "a", "name": "look", "arguments": '{"at": "sky"}'},
    {"type": "function_call_output", "call_id": "a", "output": "It is blue."},
    {"type": "custom_tool_call", "call_id": "b", "name": "say", "input": "is it?"},
    {
        "type": "custom_tool_call_output",
        "call_id": "b",
        "output": [{"type": "input_text", "text": "It is."}],
    },
    {
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Blue."}, {"type": "refusal", "refusal": "no"}],
        "phase": "commentary",
    },
]


def test_items_of_all_kinds_are_a_state(client, model):
    made = client.decisions.create(
        model=model,
        input=ITEMS,
        questions=QUESTIONS,
        prompt_cache_key="k",
        safety_identifier="s",
    )
    assert len(made.answers) == 3
    lone = [each for each in ITEMS if each.get("type") != "custom_tool_call"]
    with pytest.raises(openai.BadRequestError, match=r"input\.4\.call_id") as caught:
        client.decisions.create(model=model, input=lone, questions=QUESTIONS)
    assert caught.value.param == "input.4.call_id"


@pytest.fixture(scope="module")
def vision_http(shared_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    save(new_model(0, new_config(image_positions=256)), build_tokenizer(0, examples=4000), folder)
    write_image_processor(folder, patch_size=16)
    return shared_server(EASEL_MODEL=str(folder), EASEL_LEAST_LABEL_MASS="0").http


def test_images_are_seen_in_the_state_and_in_a_question(vision_http):
    http = vision_http
    picture = {"type": "input_image", "image_url": data_url(noise_picture(64, 64))}
    other = {"type": "input_image", "image_url": data_url(noise_picture(64, 64, seed=1))}
    read = [
        decide(http, input=[{"role": "user", "content": [each]}], questions=QUESTIONS)["answers"]
        for each in (picture, other, picture)
    ]
    assert read[0] == read[2] != read[1]
    seen = [
        {"type": "predicate", "instructions": [{"type": "input_text", "text": "Blue?"}, each]}
        for each in (picture, other)
    ]
    both = decide(http, input=STATE, questions=[*seen, QUESTIONS[0]])["answers"]
    turned = decide(http, input=STATE, questions=[*reversed(seen), QUESTIONS[0]])["answers"]
    assert [both[1], both[0], both[2]] == turned
    urls = [each["image_url"] for each in (picture, other)]
    assert ask(http, images=urls)["answers"] != ask(http, images=urls[::-1])["answers"]


def test_a_kept_prefix_is_reused_and_changes_nothing(http):
    state = " ".join(f"red {i % 50}" for i in range(150))
    first = decide(http, input=state, questions=QUESTIONS)
    again = decide(http, input=state, questions=QUESTIONS)
    details = [each["usage"]["input_tokens_details"] for each in (first, again)]
    assert details[0]["cached_tokens"] == 0 < 256 <= details[1]["cached_tokens"]
    assert details[1]["cache_write_tokens"] < 192
    assert again["answers"] == first["answers"]


def test_twenty_questions_are_read_together_or_each_alone(http):
    asked = {f"q{i}": {"type": "noul", "instructions": f"Is it {i}?"} for i in range(20)}
    joint, alone = ask(http, questions=asked), ask(http, questions=asked, joint=False)
    assert joint["joint"]["canvases"] < 6
    assert alone["joint"] == {"canvases": 20, "width": 32, "slots": 20}
    assert list(joint["answers"]) == list(alone["answers"]) == list(asked)
    few = ask(http, questions={"q7": asked["q7"]}, joint=False)
    assert few["answers"]["q7"] == alone["answers"]["q7"]


def test_options_of_a_read_change_what_is_read(http):
    plain = ask(http)
    assert plain["answers"] == ask(http, seed=0, samples=1, steps=1, joint=True)["answers"]
    for options, canvases in (
        ({"seed": 1}, 1),
        ({"samples": 3}, 3),
        ({"steps": 2}, 1),
        ({"permute": True}, 2),
        ({"instructions": "Be strict."}, 1),
    ):
        other = ask(http, **options)
        assert other["answers"] != plain["answers"], options
        assert other["joint"]["canvases"] == canvases
        assert ask(http, **options)["answers"] == other["answers"]


def test_a_system_one_answer_has_its_distribution_and_diagnostics(http):
    made = ask(http)
    noul, choice, score = made["answers"].values()
    assert 0 <= noul["noul"] <= 1
    assert choice["choice"] == max(choice["probabilities"], key=choice["probabilities"].get)
    assert score["legend"] == {"0": "pale", "1": "mid", "2": "deep"}
    means = [int(level) * share for level, share in score["probabilities"].items()]
    assert score["score"] == pytest.approx(sum(means))
    for each in made["diagnostics"].values():
        assert 0 < each["label_mass"] < 1
        assert each["argmax_is_label"] in (True, False)


def test_questions_whose_labels_have_too_small_a_share_are_refused(shared_server):
    http = shared_server(EASEL_LEAST_LABEL_MASS="1").http
    made = decide(http, input=STATE, questions=QUESTIONS)
    names = ["blue", "colour", None]
    assert made["answers"] == [{"type": "refusal", "name": name} for name in names]
    assert set(ask(http)["answers"]) == set(ASKED)  # which says how large the share is instead


CHOICE = {"type": "choice", "instructions": "q", "choices": [{"value": "a"}, {"value": "b"}]}
WRONG = {
    "a choice twice": ({**CHOICE, "choices": [{"value": "a"}] * 2}, "choices.1.value"),
    "one choice": ({**CHOICE, "choices": [{"value": "a"}]}, "choices"),
    "256 choices": ({**CHOICE, "choices": [{"value": str(i)} for i in range(256)]}, "choices"),
    "no label": ({**CHOICE, "choices": [{"value": str(i)} for i in range(255)]}, "choices"),
    "one level": ({"type": "score", "instructions": "q", "levels": [{"label": "a"}]}, "levels"),
    "no instructions": ({"type": "predicate", "instructions": ""}, "instructions"),
    "a sound": (
        {"type": "predicate", "instructions": [{"type": "input_audio"}]},
        "instructions.0",
    ),
    "an image without an address": (
        {"type": "predicate", "instructions": [{"type": "input_image"}]},
        "instructions.0",
    ),
    "another type": ({"type": "guess", "instructions": "q"}, ""),
}


@pytest.mark.parametrize(("question", "field"), WRONG.values(), ids=WRONG)
def test_an_error_names_the_question(http, question, field):
    body = {"input": STATE, "questions": [QUESTIONS[0], question]}
    error = decide(http, 400, **body)["error"]
    assert error["param"] == f"questions.1.{field}".removesuffix(".")


def test_requests_that_no_model_could_answer_are_refused(http):
    error = decide(http, 400, input=STATE, questions=QUESTIONS[:1] * 401)["error"]
    assert error["param"] == "questions"
    error = decide(http, 400, input="red " * 3000, questions=QUESTIONS)["error"]
    assert (error["param"], error["code"]) == ("input", "context_length_exceeded")
    for words in (3000, 30_000):
        long = {"type": "predicate", "instructions": "red " * words}
        error = decide(http, 400, input=STATE, questions=[QUESTIONS[0], long])["error"]
        assert (error["param"], error["code"]) == ("questions.1", "context_length_exceeded")
    error = ask(http, 400, questions={"x": {**ASKED["blue"], "weight": 2}})["error"]
    assert error["param"] == "questions.x.weight"
    error = ask(http, 400, chat_template_kwargs={"enable_thinking": True})["error"]
    assert error["param"] == "chat_template_kwargs"


def test_more_work_than_a_decision_may_have_is_refused(http):
    many = {"questions": QUESTIONS[:1] * 65, "samples": 64, "joint": False}
    error = decide(http, 400, input=STATE, **many)["error"]
    assert error["param"] == "questions"
    assert "65 canvases" in error["message"]


def test_four_hundred_questions_are_answered(http):
    made = decide(http, input="x", questions=QUESTIONS[:1] * 400)
    assert len(made["answers"]) == 400


def test_the_page_about_decisions_shows_what_runs(demo_server, capsys):
    page = (Path(__file__).parents[2] / "docs" / "decisions.md").read_text()
    names = {}
    for snippet in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        exec(snippet.replace("http://127.0.0.1:8000", demo_server.url), names)
    names["client"].close()
    (command,) = re.findall(r"-d '(.*?)'", page, re.DOTALL)
    assert set(ask(demo_server.http, **json.loads(command))["answers"]) == {
        "refund",
        "team",
        "anger",
    }
    assert "refund" in capsys.readouterr().out


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
TEXTS = WORDS.filter(str.strip)


@st.composite
def questions(draw):
    match draw(st.sampled_from(["noul", "choice", "score"])):
        case "noul":
            return {"type": "noul", "instructions": draw(TEXTS)}
        case "choice":
            names = draw(st.lists(WORDS, min_size=2, max_size=9, unique=True))
            criteria = {name: draw(st.none() | WORDS) for name in names}
            return {"type": "choice", "instructions": draw(TEXTS), "criteria": criteria}
        case _:
            levels = draw(st.lists(WORDS, min_size=2, max_size=12, unique=True))
            return {"type": "score", "instructions": draw(TEXTS), "criteria": levels}


@settings(
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(st.dictionaries(WORDS, questions(), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_probabilities_sum_to_one_and_answers_keep_their_order(http, asked, joint, permute):
    made = ask(http, questions=asked, joint=joint, permute=permute)
    assert list(made["answers"]) == list(asked)
    for name, answer in made["answers"].items():
        assert math.isclose(sum(shares(answer)), 1, abs_tol=1e-6)
        criteria = asked[name].get("criteria")
        if asked[name]["type"] == "choice":
            assert list(answer["probabilities"]) == list(criteria)


def test_jevbench_reads_every_answer_of_its_protocol(server, model):
    backend = jevbench.systemone(f"{server.url}/v1/systemone", model=model)
    assert jevbench.check(backend)["questions"] == {"noul": 4, "choice": 2, "score": 1}
    report = jevbench.evaluate(backend, suite="examples", cache=":memory:")
    backend.client.close()
    assert report.errors == []
    assert len(report.relations) == 50


ISOLATION = ["batch_solo", "batch_order", "duplicate_question", "batch_content", "batch_size_sweep"]


def test_questions_on_canvases_of_their_own_are_isolated(server):
    def separate(state, asked):
        body = {"state": state, "questions": asked, "joint": False}
        wire = {
            name: {field: value for field, value in each.items() if value is not None}
            for name, each in asked.items()
        }
        response = httpx.post(
            f"{server.url}/v1/systemone", json={**body, "questions": wire}, timeout=60
        )
        return response.raise_for_status().json()["answers"]

    backend = jevbench.from_callable(separate, name="separate")
    relations = [*ISOLATION, "key_rename"]
    report = jevbench.evaluate(backend, suite="examples", cache=":memory:", relations=relations)
    assert report.errors == []
    assert set(report.relations.values()) == {1.0}
