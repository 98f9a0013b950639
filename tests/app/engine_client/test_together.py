"""The choices of one prompt travel in one message, and come apart as they were."""

import msgspec
import pytest

from app.answer.request import AnswerRequest, prepare
from app.engine_client.together import together
from app.prompting.prompt import Prompt
from engine.messages import Decision, Image, LabelSlot, Read, Ready, Sampling, encode

LIMITS = Ready("cpu", "float32", 100, 8, 4000, "")
IMAGE = Image(0, 1, 500, 500, bytes(750_000))


@pytest.fixture
def prepared():
    """The choices of a request with two equal prompts."""
    prompts = [Prompt([5, 6, 7], images=(IMAGE,)), Prompt([5, 6, 7], images=(IMAGE,))]
    request = AnswerRequest(prompts, Sampling(seed=3, logit_bias={7: 1.0}), 20, "prompt", n=4)
    return prepare(request, LIMITS, vocabulary=None)


def test_choices_of_a_prompt_are_one_message_that_comes_apart_again(prepared):
    joined = together(prepared)
    assert [len(each.siblings) for each in joined] == [3, 3]
    assert [choice for each in joined for choice in each.choices()] == prepared


def test_different_decisions_stay_apart(prepared):
    first, second, *_ = prepared
    read = Read([5], [6, 7], [LabelSlot(1, [8, 9])])
    decisions = [Decision([read]), Decision([read], samples=2)]
    apart = [
        msgspec.structs.replace(each, decision=decision)
        for each, decision in zip((first, second), decisions, strict=True)
    ]
    assert together(apart) == apart


def test_the_images_of_a_prompt_travel_once(prepared):
    (first, _) = together(prepared)
    assert len(encode(first)) < 1.01 * len(IMAGE.pixels)
    assert all(choice.images is first.images for choice in first.choices())


def test_what_was_delivered_of_a_choice_travels_with_it(prepared):
    resumed = [
        msgspec.structs.replace(each, delivered=[9] * number, delivered_blocks=number)
        for number, each in enumerate(prepared)
    ]
    joined = together(resumed)
    assert len(joined) == 2
    assert [choice for each in joined for choice in each.choices()] == resumed


def test_requests_that_differ_in_more_than_their_choice_stay_apart(prepared):
    first, second, *_ = prepared
    longer = msgspec.structs.replace(second, max_tokens=19)
    seeded = msgspec.structs.replace(second, sampling=Sampling(seed=4))
    assert together([first, longer, seeded]) == [first, longer, seeded]
