"""Sampling options that Easel shares with other servers, over HTTP with the demo model."""

import httpx
import pytest

from tests.running_server import figures

COUNT = "Count to 9"


def answer(server, **options):
    messages = [{"role": "user", "content": COUNT}]
    body = {"messages": messages, "seed": 0, "max_tokens": 64, **options}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("word", ["3", " 3"])
def test_a_bad_word_is_not_in_the_answer_with_a_space_before_it_or_without(demo_server, word):
    assert "3" in answer(demo_server)
    assert "3" not in answer(demo_server, bad_words=[word])


def test_a_repetition_penalty_concerns_the_words_of_the_prompt(demo_server):
    plain = answer(demo_server)
    assert "9" in plain
    assert "to" not in plain
    assert "9" not in answer(demo_server, repetition_penalty=2)
    assert "to" in answer(demo_server, repetition_penalty=0.3)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": COUNT}]}),
        ("/v1/completions", {"prompt": COUNT}),
        ("/v1/responses", {"input": COUNT}),
        ("/v1/messages", {"messages": [{"role": "user", "content": COUNT}]}),
    ],
)
def test_each_dialect_has_a_quality_that_saves_steps(demo_server, path, body):
    def steps(**options):
        limit = "max_output_tokens" if "responses" in path else "max_tokens"
        whole = {**body, "seed": 0, limit: 64, **options}
        response = httpx.post(f"{demo_server.url}{path}", json=whole, timeout=60)
        assert response.status_code == 200, response.text
        before, after = metrics.pop(), figures(httpx.get(f"{demo_server.url}/metrics").text)
        metrics.append(after)
        return after[("easel_denoising_steps_total",)] - before[("easel_denoising_steps_total",)]

    metrics = [figures(httpx.get(f"{demo_server.url}/metrics").text)]
    exact = steps()
    assert steps(quality="exact") == exact
    assert steps(quality="fast") < exact
    # A single field wins over the quality.
    assert steps(quality="fast", confidence_threshold=0.005) == exact


def test_a_setting_names_the_quality_of_requests_that_name_none(demo_server, shared_server):
    fast = shared_server(EASEL_MODEL="demo", EASEL_QUALITY="fast")

    def steps(server, **options):
        messages = [{"role": "user", "content": COUNT}]
        body = {"messages": messages, "seed": 0, "max_tokens": 64, **options}
        response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        return response.json()["diffusion"]["denoising_steps"]

    assert steps(fast) == steps(demo_server, quality="fast") < steps(demo_server)
    assert steps(fast, quality="exact") == steps(demo_server)


@pytest.mark.parametrize("nothing", [{"min_p": 0}, {"repetition_penalty": 1}, {"bad_words": [""]}])
def test_values_that_ask_for_nothing_change_nothing(demo_server, nothing):
    assert answer(demo_server, **nothing) == answer(demo_server)


def test_a_min_p_of_1_draws_the_likeliest_token_as_a_top_k_of_1_does(demo_server):
    assert answer(demo_server, min_p=1) == answer(demo_server, top_k=1)
