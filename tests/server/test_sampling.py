"""Sampling options that Easel shares with other servers, over HTTP with the demo model."""

import httpx
import pytest

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


@pytest.mark.parametrize("nothing", [{"min_p": 0}, {"repetition_penalty": 1}, {"bad_words": [""]}])
def test_values_that_ask_for_nothing_change_nothing(demo_server, nothing):
    assert answer(demo_server, **nothing) == answer(demo_server)


def test_a_min_p_of_1_draws_the_likeliest_token_as_a_top_k_of_1_does(demo_server):
    assert answer(demo_server, min_p=1) == answer(demo_server, top_k=1)
