"""Bounds on the machine-independent counts of a step and an answer, so that they cannot grow."""

import pytest

from bench.counts import answer_passes, step_counts
from bench.sides import demo_prompt
from tests.counting import count

MOST_LAUNCHES = 550  # of six layers; a change that needs more must say why


@pytest.fixture(scope="module")
def counts():
    return step_counts()


def test_a_step_waits_for_the_device_once(counts):
    assert counts["Easel"].syncs == 1


def test_a_step_never_writes_logits_of_the_whole_vocabulary_for_all_rows(counts):
    assert counts["Easel"].vocab_tensors == 0
    assert counts["Transformers"].vocab_tensors > 10  # shows that the counting works


def test_a_step_launches_no_more_kernels_than_allowed(counts):
    assert counts["Easel"].launches <= MOST_LAUNCHES < counts["Transformers"].launches


def test_an_answer_takes_one_pass_per_denoising_step():
    blocks, steps, passes = answer_passes(demo_prompt(count(3)))
    assert blocks == 3
    assert passes == steps


def test_speculation_saves_passes():
    blocks, steps, passes = answer_passes(demo_prompt(count(3)), speculate=True)
    assert steps - blocks < passes < steps
