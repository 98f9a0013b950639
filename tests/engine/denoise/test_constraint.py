"""Answers of a tiny random model that must obey a constraint, made by the worker."""

import dataclasses
import re
import threading

import msgspec
import pytest

import engine.worker
from bench.random_model import Shape, write_random_model
from engine.config import EngineConfig
from engine.constraint.automaton import Automaton
from engine.constraint.grammar import lark_grammar
from engine.constraint.rules import GrammarRules
from engine.loading import build_denoiser
from engine.messages import (
    Block,
    Cancel,
    Cancelled,
    Constraint,
    EndThought,
    Failed,
    GenerateRequest,
    Sampling,
    Sibling,
    Texts,
)
from engine.worker import Worker
from tests.engine.toy_automata import automaton, one_of, text

PROMPT = list(range(6, 30))
CANVAS, VOCAB, STEPS = 8, 160, 6
END, OTHER_END = 159, 158
SHAPE = Shape(layers="sf", canvas=CANVAS, vocab=VOCAB, steps=STEPS, entropy_bound=6.0)
# Each token of ASCII is its character, those behind are some longer words.
WORDS = [b'":', b'", "', b"12", b'{"', b'"}', b"aa", b"name"]
VOCABULARY = [bytes([i]) if 32 <= i < 127 else b"" for i in range(128)]
VOCABULARY += [*WORDS, *[b""] * (VOCAB - 128 - len(WORDS))]

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_STRING = text('"') + one_of(_LETTERS).many() + text('"')
_NUMBER = one_of("123456789") + one_of("0123456789").many()
OBJECT = text('{"name":') + _STRING + text(',"n":') + _NUMBER + text("}")
OBJECT_PATTERN = r'\{"name":"[a-z]*","n":[1-9][0-9]*\}'


def made(allowed, ends=(END,)) -> Automaton:
    return automaton(allowed, VOCABULARY, ends)


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    folder = write_random_model(tmp_path_factory.mktemp("tiny"), SHAPE)
    denoiser = build_denoiser(EngineConfig(model=str(folder), device="cpu", max_context=160))
    ends = frozenset({END, OTHER_END})
    denoiser.sampler = dataclasses.replace(denoiser.sampler, end_tokens=ends, padding=0)
    return denoiser


@pytest.fixture
def worker(denoiser):
    return Worker(denoiser, EngineConfig(prefill_chunk=16))


def request(constraint, *, max_tokens=30, seed=1, **options):
    fields = {name: options.pop(name) for name in (*options,) if name in GENERATE_FIELDS}
    sampling = Sampling(seed, **options)
    return GenerateRequest("a", PROMPT, max_tokens, sampling, constraint=constraint.hash, **fields)


GENERATE_FIELDS = {"lead", "delivered", "delivered_blocks", "siblings"}


def blocks_of(worker, constraint, **options):
    assert worker.handle(Constraint(constraint.hash, constraint.to_bytes())) == []
    blocks = list(worker.generate(request(constraint, **options)))
    assert all(isinstance(block, Block) for block in blocks), blocks
    return blocks


def tokens_of(blocks):
    return [token for block in blocks for token in block.tokens]


def text_of(tokens):
    return b"".join(VOCABULARY[token] for token in tokens).decode()


@pytest.mark.parametrize("seed", range(6))
def test_an_answer_of_several_blocks_obeys_its_constraint(worker, seed):
    blocks = blocks_of(worker, made(OBJECT), seed=seed)
    tokens = tokens_of(blocks)
    assert len(blocks) > 1
    assert re.fullmatch(OBJECT_PATTERN, text_of(tokens))
    assert tokens[-1] == END
    assert blocks[-1].finish_reason == "stop"


@pytest.mark.parametrize("spare", [0, 1, 2, 7])
def test_an_answer_is_complete_within_max_tokens(worker, spare):
    constraint = made(OBJECT)
    least = constraint.least_tokens
    for seed in range(4):
        tokens = tokens_of(blocks_of(worker, constraint, seed=seed, max_tokens=least + spare))
        assert len(tokens) <= least + spare
        assert re.fullmatch(OBJECT_PATTERN, text_of(tokens))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"top_p": 0.5, "top_k": 20},
        {"logit_bias": {ord("}"): -100.0, ord("q"): 20.0}},
        {"banned_tokens": list(b'{"}')},
        {"repetition_penalty": 1.5, "presence_penalty": 1.0},
        {"max_denoising_steps": 1},
        {"confidence_threshold": 100.0},
        {"stop_token_ids": [ord("#")]},
    ],
)
def test_a_constraint_holds_with_every_option_of_sampling(worker, options):
    tokens = tokens_of(blocks_of(worker, made(OBJECT), **options))
    assert re.fullmatch(OBJECT_PATTERN, text_of(tokens))


def test_a_biased_token_is_chosen_where_the_constraint_leaves_the_choice(worker):
    anything = made(text("[") + one_of(_LETTERS).many() + text("]"))
    tokens = tokens_of(blocks_of(worker, anything, logit_bias={ord("q"): 50.0}, max_tokens=12))
    assert set(text_of(tokens)) == {"[", "q", "]"}


def test_min_tokens_keep_an_answer_from_ending_where_it_could(worker):
    anything = made(one_of(_LETTERS).many())
    options = {"logit_bias": {END: 50.0}, "max_tokens": 20}
    assert len(tokens_of(blocks_of(worker, anything, **options))) == 1
    assert len(tokens_of(blocks_of(worker, anything, min_tokens=11, **options))) == 12


def test_an_answer_that_is_allowed_anyway_stays_the_same_token_by_token(worker):
    anything = automaton(one_of("x").many(), VOCABULARY, [END, OTHER_END])
    every = dataclasses.replace(
        anything, token_class=anything.token_class.copy(), next_state=anything.next_state
    )
    every.token_class[every.token_class == 0] = every.token_class[ord("x")]
    ended = 0
    for seed in range(12):
        free = [*worker.generate(GenerateRequest("b", PROMPT, 60, Sampling(seed)))]
        if tokens_of(free)[-1] not in (END, OTHER_END):
            continue  # it has no end, which the constraint requires
        ended += 1
        blocks = blocks_of(worker, every, seed=seed, max_tokens=60)
        assert [b.tokens for b in blocks] == [b.tokens for b in free]
        assert [b.denoising_steps for b in blocks] == [b.denoising_steps for b in free]
        assert not any(b.corrections for b in blocks)
    assert ended > 3


def test_the_steps_in_which_a_canvas_was_corrected_are_counted(worker):
    blocks = blocks_of(worker, made(OBJECT), confidence_threshold=100.0)
    assert all(1 <= block.corrections <= block.denoising_steps for block in blocks)


def test_no_step_finishes_a_block_that_is_still_being_corrected(worker):
    # The stopping rule would end each block after two steps.
    options = {"confidence_threshold": 100.0, "max_denoising_steps": 40}
    blocks = blocks_of(worker, made(OBJECT), **options)
    assert blocks[0].denoising_steps > 2
    assert re.fullmatch(OBJECT_PATTERN, text_of(tokens_of(blocks)))


def test_log_probabilities_are_those_of_the_corrected_tokens(worker):
    blocks = blocks_of(worker, made(OBJECT), top_logprobs=2)
    for block in blocks:
        assert [entry.token for entry in block.logprobs] == block.tokens


def test_the_lead_comes_with_the_first_block_and_is_read_by_the_constraint(worker):
    lead = list(b'{"name":"')
    blocks = blocks_of(worker, made(OBJECT), lead=lead)
    assert blocks[0].tokens[: len(lead)] == lead
    assert len(blocks[0].tokens) == len(lead) + CANVAS
    assert re.fullmatch(OBJECT_PATTERN, text_of(tokens_of(blocks)))


def test_the_lead_counts_towards_max_tokens(worker):
    constraint, lead = made(OBJECT), list(b'{"name":"')
    left = constraint.least_tokens - 4  # the lead is written in nine tokens instead of five
    blocks = blocks_of(worker, constraint, lead=lead, max_tokens=len(lead) + left)
    assert len(tokens_of(blocks)) <= len(lead) + left
    assert re.fullmatch(OBJECT_PATTERN, text_of(tokens_of(blocks)))


def test_an_interrupted_answer_goes_on_as_if_it_had_not_been(worker):
    for options in ({}, {"lead": list(b'{"na')}):
        whole = blocks_of(worker, made(OBJECT), **options)
        first, others = whole[0], whole[1:]
        more = blocks_of(
            worker, made(OBJECT), delivered=first.tokens, delivered_blocks=1, **options
        )
        assert [block.tokens for block in more] == [block.tokens for block in others]


def test_choices_of_one_prompt_all_obey_the_constraint(worker):
    constraint = made(OBJECT)
    siblings = [Sibling("b", 1), Sibling("c", 2)]
    blocks = blocks_of(worker, constraint, siblings=siblings, lead=list(b"{"))
    for name in "abc":
        tokens = tokens_of(block for block in blocks if block.id == name)
        assert re.fullmatch(OBJECT_PATTERN, text_of(tokens))


def test_a_parked_answer_keeps_its_constraint(worker):
    constraint = made(OBJECT)
    alone = tokens_of(blocks_of(worker, constraint))
    worker.handle(request(constraint))
    messages = worker.step() + worker.step()
    for number in range(EngineConfig().max_active):
        worker.handle(GenerateRequest(f"u{number}", PROMPT, 9, Sampling(5, priority=-1)))
    while not worker.idle:
        messages += worker.step()
    tokens = tokens_of(m for m in messages if isinstance(m, Block) and m.id == "a")
    assert tokens == alone


def test_requests_with_and_without_a_constraint_share_passes(worker):
    constraint = made(OBJECT)
    alone = tokens_of(blocks_of(worker, constraint))
    free = GenerateRequest("b", PROMPT, 30, Sampling(7))
    free_alone = tokens_of(worker.generate(free))
    messages = worker.handle(request(constraint)) + worker.handle(free)
    while not worker.idle:
        messages += worker.step()
    assert tokens_of(m for m in messages if m.id == "a") == alone
    assert tokens_of(m for m in messages if m.id == "b") == free_alone


def test_speculation_changes_no_token_of_an_answer(worker, denoiser):
    constraint = made(one_of(_LETTERS).many() + text("!"))
    speculating = Worker(denoiser, EngineConfig(prefill_chunk=16, speculate=True))
    options = {"confidence_threshold": 100.0, "max_denoising_steps": 30, "max_tokens": 40}
    options["logit_bias"] = {ord(letter): 30.0 for letter in "abc"}
    speculations = 0
    for seed in range(4):
        blocks = blocks_of(worker, constraint, seed=seed, **options)
        same = blocks_of(speculating, constraint, seed=seed, **options)
        assert [block.tokens for block in same] == [block.tokens for block in blocks]
        speculations += sum(block.speculations for block in same)
    assert speculations > 0


class HeldBack:
    """Makes constraints no further until it is let go."""

    def __init__(self, monkeypatch):
        self.let_go = threading.Event()
        made = Worker._rules

        def rules(worker, constraint):
            self.let_go.wait()
            return made(worker, constraint)

        monkeypatch.setattr(Worker, "_rules", rules)


def test_running_answers_go_on_while_a_constraint_is_made(worker, monkeypatch):
    constraint = made(OBJECT)
    alone = tokens_of(blocks_of(worker, constraint))
    free = GenerateRequest("b", PROMPT, 30, Sampling(7))
    free_alone = tokens_of(worker.generate(free))
    held = HeldBack(monkeypatch)
    other = dataclasses.replace(constraint, need=constraint.need.copy())
    worker.handle(Constraint("other", other.to_bytes()))
    worker.handle(free)
    worker.step()
    demanding = request(constraint, siblings=[Sibling("c", 2)])
    demanding = msgspec.structs.replace(demanding, constraint="other")
    assert worker.handle(demanding) == []
    works = worker.next_pass()
    (beat,) = worker.heartbeat(works)
    assert set(beat.in_pass) == {"a", "b", "c"}  # if the worker dies, each may be the cause
    messages = worker.run(works)
    while sum(len(m.tokens) for m in messages if m.id == "b") < 16:
        messages += worker.step()
    assert {m.id for m in messages} == {"b"}
    held.let_go.set()
    while not worker.idle:
        messages += worker.step()
    assert tokens_of(m for m in messages if m.id == "a") == alone
    assert tokens_of(m for m in messages if m.id == "b") == free_alone
    assert {m.id for m in messages if isinstance(m, Block)} == {"a", "b", "c"}


@pytest.mark.parametrize("early", [Cancel("c"), EndThought("c")])
def test_a_message_about_a_request_is_heard_before_its_constraint_is_made(
    worker, monkeypatch, early
):
    constraint = made(OBJECT)
    held = HeldBack(monkeypatch)
    worker.handle(Constraint(constraint.hash, constraint.to_bytes()))
    worker.handle(GenerateRequest("b", PROMPT, 30, Sampling(7)))
    worker.step()
    assert worker.handle(request(constraint, siblings=[Sibling("c", 2)])) == []
    assert not worker.idle
    held.let_go.set()
    assert worker.handle(early) == ([Cancelled("c")] if early == Cancel("c") else [])
    messages = worker.handle(Cancel("c"))
    assert worker.idle is False
    while not worker.idle:
        messages += worker.step()
    assert {m.id for m in messages if isinstance(m, Block)} == {"a", "b"}


def test_the_vocabulary_of_grammars_is_made_before_the_first_request(worker, monkeypatch):
    worker.handle(Texts(VOCABULARY, [END]))
    monkeypatch.setattr(engine.worker, "GrammarVocabulary", None)  # it is not made again
    worker.handle(Constraint("g", grammar=GRAMMAR))
    assert tokens_of(worker.generate(grammar_request()))


def failure(worker, constraint, known=True, **options):
    if known:
        worker.handle(Constraint(constraint.hash, constraint.to_bytes()))
    (message,) = worker.handle(request(constraint, **options))
    assert isinstance(message, Failed)
    return message.message


def test_a_request_whose_constraint_cannot_be_held_fails_at_once(worker, denoiser):
    constraint = made(OBJECT)
    assert "not known" in failure(worker, constraint, known=False)
    for texts, why in (([], "cannot be held"), (None, "texts of the tokens are not known")):
        without = Worker(denoiser, EngineConfig(prefill_chunk=16))
        if texts is not None:
            without.handle(Texts(texts, [END]))
        without.handle(Constraint("g", grammar=GRAMMAR))
        (message,) = without.handle(grammar_request())
        assert why in message.message
    worker.handle(Texts(VOCABULARY, [END]))
    worker.handle(Constraint("broken", grammar="start: ["))
    (message,) = worker.handle(GenerateRequest("a", PROMPT, 30, Sampling(1), constraint="broken"))
    assert "cannot be held" in message.message
    short = {"max_tokens": constraint.least_tokens - 1}
    assert "max_tokens is too small" in failure(worker, constraint, **short)
    assert "breaks its constraint" in failure(worker, constraint, lead=[ord("x")])
    assert "suffix" in failure(worker, constraint, suffix=[40], max_tokens=5)
    assert "end the answer" in failure(worker, constraint, ignore_eos=True)
    assert "end the answer" in failure(worker, made(OBJECT, ends=[157]))
    smaller = automaton(OBJECT, VOCABULARY[:-1], [END - 1])
    assert "another vocabulary" in failure(worker, smaller)


GRAMMAR = lark_grammar('start: "[" ITEM ("," ITEM)* "]"\nITEM: /[a-c]+/')
GRAMMAR_PATTERN = r"\[[a-c]+(,[a-c]+)*\]"


def grammar_blocks(worker, *, grammar=GRAMMAR, thought=(), **options):
    worker.handle(Texts(VOCABULARY, [END]))
    worker.handle(Constraint("g", grammar=grammar, thought=list(thought)))
    return [*worker.generate(grammar_request(**options))]


def grammar_request(*, max_tokens=40, seed=1, delivered=(), delivered_blocks=0, **options):
    return GenerateRequest(
        "a",
        PROMPT,
        max_tokens,
        Sampling(seed, **options),
        constraint="g",
        delivered=list(delivered),
        delivered_blocks=delivered_blocks,
    )


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_by_a_grammar_is_always_a_beginning_of_it(worker, seed):
    blocks = grammar_blocks(worker, seed=seed)
    tokens = tokens_of(blocks)
    if tokens[-1] == END:
        assert re.fullmatch(GRAMMAR_PATTERN, text_of(tokens))
    else:
        assert re.fullmatch(r"\[([a-c]+,)*[a-c]*\]?", text_of(tokens))
        assert blocks[-1].finish_reason == "length"


def test_an_answer_by_a_grammar_is_complete_if_the_model_ends_it(worker):
    bias = {"logit_bias": {END: 40.0, ord("]"): 30.0}}
    blocks = grammar_blocks(worker, **bias)
    assert re.fullmatch(GRAMMAR_PATTERN, text_of(tokens_of(blocks)))
    assert blocks[-1].finish_reason == "stop"
    assert blocks[0].corrections > 0


def test_an_interrupted_answer_by_a_grammar_goes_on(worker):
    first, *others = grammar_blocks(worker)
    assert others
    more = grammar_blocks(worker, delivered=first.tokens, delivered_blocks=1)
    assert [block.tokens for block in more] == [block.tokens for block in others]


def test_a_grammar_holds_for_what_follows_a_thought(worker):
    opened, closed = 156, 157
    bias = {"logit_bias": {closed: 30.0, END: 40.0, ord("]"): 25.0}}
    tokens = tokens_of(grammar_blocks(worker, thought=[closed], **bias))
    assert closed in tokens
    assert re.fullmatch(GRAMMAR_PATTERN, text_of(tokens[tokens.index(closed) + 1 :]))
    bias["logit_bias"][opened] = 60.0
    tokens = tokens_of(grammar_blocks(worker, thought=[opened, closed], **bias))
    assert tokens[0] == opened
    assert re.fullmatch(GRAMMAR_PATTERN, text_of(tokens[tokens.index(closed) + 1 :]))
    bias["logit_bias"][opened] = -60.0
    tokens = tokens_of(grammar_blocks(worker, thought=[opened, closed], **bias))
    assert re.fullmatch(GRAMMAR_PATTERN, text_of(tokens))


def test_a_grammar_that_becomes_too_complex_fails_its_request_alone(worker, monkeypatch):
    def too_complex(_rules, _answer):
        raise ValueError("too complex")

    worker.handle(Texts(VOCABULARY, [END]))
    worker.handle(Constraint("g", grammar=GRAMMAR))
    messages = worker.handle(grammar_request())
    messages += worker.handle(GenerateRequest("b", PROMPT, 10, Sampling(3)))
    monkeypatch.setattr(GrammarRules, "read", too_complex)
    while not worker.idle:
        messages += worker.step()
    (failed,) = [m for m in messages if m.id == "a"]
    assert isinstance(failed, Failed)
    assert "too complex" in failed.message
    assert all(isinstance(m, Block) for m in messages if m.id == "b")
