"""Requests in the worker's form."""

import pytest

from app.answer.request import AnswerRequest, prepare
from app.errors import BadRequest
from app.prompting.prompt import Prompt
from app.prompting.vocabulary import Vocabulary
from engine.config import DEMO_MODEL_PATH
from engine.messages import Ready, Sampling

LIMITS = Ready("cpu", "float32", 64, 8, vocab_size=100, profile="")


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary(DEMO_MODEL_PATH / "tokenizer.json")


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("logit_bias", lambda token: {"logit_bias": {token: 1.0}}),
        ("stop_token_ids", lambda token: {"stop_token_ids": [7, token]}),
        ("bad_words", lambda token: {"banned_tokens": [7, token]}),
    ],
)
def test_token_ids_that_the_model_does_not_have_are_refused(field, options, vocabulary):
    def request(token):
        sampling = Sampling(seed=0, **options(token))
        return AnswerRequest([Prompt([1, 2])], sampling, 5, "messages")

    assert len(prepare(request(99), LIMITS, vocabulary)) == 1
    with pytest.raises(BadRequest, match=field) as refused:
        prepare(request(100), LIMITS, vocabulary)
    assert refused.value.param == field


def test_each_choice_has_the_end_tokens_of_its_prompt(vocabulary):
    prompts = [Prompt([1], end_tokens=(4, 5)), Prompt([2])]
    request = AnswerRequest(prompts, Sampling(seed=0, stop_token_ids=[6]), 5, "prompt", n=2)
    sampling = [each.sampling for each in prepare(request, LIMITS, vocabulary)]
    assert [each.end_tokens for each in sampling] == [[4, 5], [4, 5], [], []]
    assert [each.choice for each in sampling] == [0, 1, 0, 1]
    assert all(each.stop_token_ids == [6] for each in sampling)
