"""Requests in the worker's form."""

from dataclasses import replace

import pytest

from app.answer.request import AnswerConstraint, AnswerRequest, ChatFormat, prepare
from app.constraint.enforced import Enforced
from app.errors import BadRequest
from app.prompting.prompt import Prompt
from app.prompting.vocabulary import Vocabulary
from engine.config import DEMO_MODEL_PATH
from engine.messages import Constraint, Ready, Sampling, Thought

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


def test_the_choices_of_an_answer_have_its_id(vocabulary):
    request = AnswerRequest([Prompt([1]), Prompt([2])], Sampling(seed=0), 5, "prompt", n=2)
    ids = [each.id for each in prepare(request, LIMITS, vocabulary)]
    assert ids == [f"{request.id}-{choice}" for choice in range(4)]
    other = AnswerRequest([Prompt([1])], Sampling(seed=0), 5, "prompt")
    assert other.id != request.id


@pytest.mark.parametrize("thinking", [False, True])
def test_the_worker_gets_the_marks_of_a_chat_and_what_a_form_needs(vocabulary, thinking):
    limits = Ready("cpu", "float32", 64, 8, vocab_size=2000, profile="")
    prompt = Prompt([1], thinking=thinking)
    chat = AnswerRequest(
        [prompt], Sampling(seed=0), 40, "messages", format=ChatFormat(), thinking_budget=9
    )
    marks = vocabulary.control_ids(["<|channel>", "<channel|>"])
    header = vocabulary.encode_literally("thought\n")
    (made,) = prepare(chat, limits, vocabulary)
    assert made.thought == Thought(*marks, header, begun=thinking, budget=9)
    form = AnswerConstraint(Enforced(Constraint("x"), (), 7, ()), "response_format")
    (made,) = prepare(replace(chat, constraint=form), limits, vocabulary)
    assert made.thought.reserve == 7 - thinking  # the closing mark is not kept for what follows
    (made,) = prepare(replace(chat, format=None), limits, vocabulary)
    assert made.thought is None
    (made,) = prepare(chat, LIMITS, vocabulary)  # a model that lacks the tokens
    assert made.thought is None
