"""Thoughts of a tiny random model that the worker closes, because the model itself never does."""

import dataclasses
import re

import msgspec
import pytest

from bench.random_model import Shape, write_random_model
from engine.config import EngineConfig
from engine.loading import build_denoiser
from engine.messages import (
    Block,
    Constraint,
    EndThought,
    Failed,
    GenerateRequest,
    Sampling,
    Sibling,
    Thought,
)
from engine.worker import Worker
from tests.engine.toy_automata import automaton, one_of, text

PROMPT = list(range(6, 30))
CANVAS, VOCAB, STEPS = 8, 160, 6
SHAPE = Shape(layers="sf", canvas=CANVAS, vocab=VOCAB, steps=STEPS, entropy_bound=6.0)
NAME, LINE, OPEN, CLOSE, END = 130, 131, 156, 157, 159
HEAD = [OPEN, NAME, LINE]
THOUGHT = Thought(OPEN, CLOSE, [NAME, LINE], begun=True)
MAX_TOKENS = 40


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    folder = write_random_model(tmp_path_factory.mktemp("tiny"), SHAPE)
    denoiser = build_denoiser(EngineConfig(model=str(folder), device="cpu", max_context=160))
    denoiser.sampler = dataclasses.replace(denoiser.sampler, end_tokens=frozenset({END}), padding=0)
    return denoiser


@pytest.fixture
def worker(denoiser):
    return Worker(denoiser, EngineConfig(prefill_chunk=16))


def request(budget=None, *, thought=THOUGHT, max_tokens=MAX_TOKENS, seed=1, bans=True, **options):
    """Returns a request for an answer that neither ends nor closes a thought by itself."""
    fields = {name: options.pop(name) for name in (*options,) if name in FIELDS}
    if bans:
        options["banned_tokens"] = [CLOSE, END, 0]
    thought = msgspec.structs.replace(thought, budget=budget)
    sampling = Sampling(seed, **options)
    return GenerateRequest("a", PROMPT, max_tokens, sampling, thought=thought, **fields)


FIELDS = {"delivered", "delivered_blocks", "siblings", "constraint"}


def blocks_of(worker, budget=None, **options):
    blocks = [*worker.generate(request(budget, **options))]
    assert all(isinstance(block, Block) for block in blocks), blocks
    return blocks


def tokens_of(blocks):
    return [token for block in blocks for token in block.tokens]


@pytest.mark.parametrize("budget", [0, 1, 2, 7, 8, 9, 10, 15, 16, 17, 30])
def test_a_thought_is_closed_at_its_budget_and_the_answer_begins_in_the_next_block(worker, budget):
    free = tokens_of(blocks_of(worker))
    blocks = blocks_of(worker, budget)
    tokens = tokens_of(blocks)
    closed = max(budget, 1) - 1
    assert tokens[: closed + 1] == [*free[:closed], CLOSE]
    assert tokens.count(CLOSE) == 1
    reasons = [block.thought_closed for block in blocks]
    (index,) = [i for i, reason in enumerate(reasons) if reason is not None]
    assert reasons[index] == "budget"
    assert blocks[index].tokens[-1] == CLOSE
    assert [block.index for block in blocks] == list(range(len(blocks)))
    assert (len(tokens), blocks[-1].finish_reason) == (MAX_TOKENS, "length")


def test_a_thought_without_a_budget_or_within_it_is_as_without_marks(worker):
    free = request()
    plain = msgspec.structs.replace(free, thought=None)
    expected = [*worker.generate(plain)]
    for made in (free, request(MAX_TOKENS + 1)):
        blocks = [*worker.generate(made)]
        assert [block.tokens for block in blocks] == [block.tokens for block in expected]
        assert [b.denoising_steps for b in blocks] == [b.denoising_steps for b in expected]
        assert not any(block.thought_closed for block in blocks)


def test_a_block_of_the_closing_mark_alone_takes_one_step(worker):
    blocks = blocks_of(worker, CANVAS + 1)
    assert blocks[1].tokens == [CLOSE]
    assert blocks[1].denoising_steps == 1


def test_a_budget_that_max_tokens_cuts_off_closes_nothing(worker):
    blocks = blocks_of(worker, 20, max_tokens=19)
    assert (len(tokens_of(blocks)), blocks[-1].finish_reason) == (19, "length")
    assert CLOSE not in tokens_of(blocks)
    blocks = blocks_of(worker, 20, max_tokens=20)
    assert tokens_of(blocks)[-1] == CLOSE
    assert (blocks[-1].thought_closed, blocks[-1].finish_reason) == ("budget", "length")


def test_no_thought_begins_behind_one_that_has_used_up_the_budget(worker):
    bias = {"logit_bias": {OPEN: 60.0}, "thought": msgspec.structs.replace(THOUGHT, begun=False)}
    tokens = tokens_of(blocks_of(worker, 6, **bias))
    assert tokens[0] == OPEN
    close = tokens.index(CLOSE)
    assert OPEN not in tokens[close:]
    assert len(tokens) == MAX_TOKENS
    assert tokens_of(blocks_of(worker, **bias)).count(OPEN) == MAX_TOKENS


@pytest.mark.parametrize("budget", [5, 8, 20])
def test_an_interrupted_answer_goes_on_as_if_it_had_not_been(worker, budget):
    blocks = blocks_of(worker, budget)
    for done in range(1, len(blocks)):
        rest = blocks_of(worker, budget, delivered=tokens_of(blocks[:done]), delivered_blocks=done)
        assert [block.tokens for block in rest] == [block.tokens for block in blocks[done:]]
        assert [b.thought_closed for b in rest] == [b.thought_closed for b in blocks[done:]]


def test_each_choice_has_the_budget_for_itself(worker):
    several = request(10, siblings=[Sibling("b", 1), Sibling("c", 2)])
    messages = worker.handle(several)
    while not worker.idle:
        messages += worker.step()
    for choice, name in enumerate("abc"):
        blocks = [message for message in messages if message.id == name]
        alone = blocks_of(worker, 10, choice=choice)
        assert [block.tokens for block in blocks] == [block.tokens for block in alone]
        assert tokens_of(blocks)[9] == CLOSE


@pytest.mark.parametrize("budget", [5, 8, 11])
def test_speculation_changes_no_token_of_a_thought_that_is_closed(denoiser, budget):
    options = {"confidence_threshold": 1.0, "max_denoising_steps": 20}
    made = {}
    for speculate in (False, True):
        worker = Worker(denoiser, EngineConfig(prefill_chunk=16, speculate=speculate))
        made[speculate] = [
            [block.tokens for block in blocks_of(worker, budget, seed=seed, **options)]
            for seed in range(4)
        ]
    assert made[True] == made[False]


def test_the_closing_mark_has_a_log_probability_too(worker):
    blocks = blocks_of(worker, 11, top_logprobs=2)
    for block in blocks:
        assert [each.token for each in block.logprobs] == block.tokens


@pytest.mark.parametrize("steps", range(1, 10))
def test_a_client_ends_a_running_thought_between_any_two_passes(worker, steps):
    free = blocks_of(worker)
    messages = worker.handle(request())
    for _ in range(steps):
        messages += worker.step()
    had = tokens_of(messages)
    assert worker.handle(EndThought("a")) == []
    while not worker.idle:
        messages += worker.step()
    tokens = tokens_of(messages)
    assert tokens[: len(had) + 1] == [*tokens_of(free)[: len(had)], CLOSE]
    assert [m.thought_closed for m in messages if m.thought_closed] == ["client"]
    assert len(tokens) == MAX_TOKENS


@pytest.mark.parametrize("passes", [0, 2])  # the second one has the first step
def test_a_thought_that_is_ended_before_it_begins_has_no_text(worker, passes):
    bias = {"logit_bias": {OPEN: 60.0}, "thought": msgspec.structs.replace(THOUGHT, begun=False)}
    messages = worker.handle(request(**bias, max_denoising_steps=20, confidence_threshold=0.0))
    for _ in range(passes):
        messages += worker.step()
    assert messages == []
    worker.handle(EndThought("a"))
    while not worker.idle:
        messages += worker.step()
    tokens = tokens_of(messages)
    assert tokens[:2] == [OPEN, CLOSE] if passes else OPEN not in tokens
    assert OPEN not in tokens[2:]


def test_the_end_of_a_thought_that_is_over_or_unknown_changes_nothing(worker):
    assert worker.handle(EndThought("nobody")) == []
    expected = blocks_of(worker, 3)
    messages = worker.handle(request(3))
    while len(messages) < 2:
        messages += worker.step()
    worker.handle(EndThought("a"))
    while not worker.idle:
        messages += worker.step()
    assert [m.tokens for m in messages] == [block.tokens for block in expected]
    plain = msgspec.structs.replace(request(), thought=None)
    worker.handle(plain)
    assert worker.handle(EndThought("a")) == []
    while not worker.idle:
        worker.step()


def test_an_answer_that_is_empty_behind_its_thought_is_begun_again_once(denoiser, monkeypatch):
    ends = frozenset(range(VOCAB)) - {CLOSE}
    sampler = dataclasses.replace(denoiser.sampler, end_tokens=ends, padding=None)
    monkeypatch.setattr(denoiser, "sampler", sampler)
    worker = Worker(denoiser, EngineConfig(prefill_chunk=16))
    closed, empty = blocks_of(worker, 1, bans=False, banned_tokens=[CLOSE])
    assert (closed.tokens, closed.rerolled) == ([CLOSE], False)
    assert (len(empty.tokens), empty.rerolled, empty.finish_reason) == (1, True, "stop")
    assert empty.denoising_steps > STEPS


# Characters, and the marks as characters of their own, so that an automaton can read a thought.
VOCABULARY = [bytes([i]) if 32 <= i < 127 else b"" for i in range(VOCAB)]
VOCABULARY[CLOSE] = b"\x01"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_FORM = text('{"n":') + one_of("123456789") + one_of("0123456789").many() + text("}")
_ANY = one_of("".join(map(chr, range(32, 127)))).many()
FORM = automaton(_FORM, VOCABULARY, [END])
BEHIND_THOUGHT = automaton(_ANY + text("\x01") + _FORM, VOCABULARY, [END])
PATTERN = r'\{"n":[1-9][0-9]*\}'


@pytest.mark.parametrize("max_tokens", [10, 12, 16, 17, 25, 40])
@pytest.mark.parametrize("budget", [None, 4, 12])
@pytest.mark.parametrize("seed", range(3))
def test_a_thought_leaves_room_for_the_form_behind_it(worker, max_tokens, budget, seed):
    worker.handle(Constraint(BEHIND_THOUGHT.hash, BEHIND_THOUGHT.to_bytes()))
    reserve = FORM.least_tokens
    thought = msgspec.structs.replace(THOUGHT, reserve=reserve)
    blocks = blocks_of(
        worker,
        budget,
        thought=thought,
        max_tokens=max_tokens,
        seed=seed,
        constraint=BEHIND_THOUGHT.hash,
    )
    tokens = tokens_of(blocks)
    close = tokens.index(CLOSE)
    assert re.fullmatch(PATTERN, "".join(map(chr, tokens[close + 1 : -1])))
    assert (tokens[-1], blocks[-1].finish_reason) == (END, "stop")
    assert close + 1 <= min(max_tokens - reserve, MAX_TOKENS if budget is None else budget)


def test_the_limit_that_closes_a_thought_is_named(worker):
    worker.handle(Constraint(BEHIND_THOUGHT.hash, BEHIND_THOUGHT.to_bytes()))
    thought = msgspec.structs.replace(THOUGHT, reserve=FORM.least_tokens)
    options = {"thought": thought, "constraint": BEHIND_THOUGHT.hash, "max_tokens": 20}
    for budget, reason in ((None, "form"), (5, "budget"), (30, "form")):
        blocks = blocks_of(worker, budget, **options)
        assert [b.thought_closed for b in blocks if b.thought_closed] == [reason]


@pytest.mark.parametrize(
    "wrong",
    [{"open": VOCAB}, {"close": -1}, {"header": [VOCAB]}, {"budget": -1}, {"reserve": -1}],
)
def test_marks_that_the_model_does_not_have_are_refused(worker, wrong):
    asked = request()
    asked = msgspec.structs.replace(asked, thought=msgspec.structs.replace(THOUGHT, **wrong))
    (failed,) = worker.generate(asked)
    assert isinstance(failed, Failed)
