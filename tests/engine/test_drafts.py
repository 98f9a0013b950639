"""The drafts that the worker sends, on a tiny random model."""

import dataclasses

import pytest

from bench.random_model import Shape, write_random_model
from engine.config import EngineConfig
from engine.denoise import denoising_step
from engine.loading import build_denoiser
from engine.messages import Block, Draft, Failed, GenerateRequest, Sampling, decode_from_worker
from engine.messages import encode as encoded
from engine.worker import Worker

PROMPT = list(range(6, 30))
CANVAS, STEPS = 8, 4


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    shape = Shape(layers="sf", canvas=CANVAS, confidence_threshold=1e-9, steps=STEPS)
    folder = write_random_model(tmp_path_factory.mktemp("tiny"), shape)
    denoiser = build_denoiser(EngineConfig(model=str(folder), device="cpu", max_context=128))
    # Without end tokens and padding, every answer continues until its max_tokens.
    denoiser.sampler = dataclasses.replace(denoiser.sampler, end_tokens=frozenset(), padding=None)
    return denoiser


@pytest.fixture
def worker(denoiser):
    return Worker(denoiser, EngineConfig())


def request(request_id="a", *, max_tokens=20, lead=(), **sampling):
    options = Sampling(**{"seed": 1, **sampling})
    return GenerateRequest(request_id, PROMPT, max_tokens, options, lead=list(lead))


def drafts_of(messages):
    return [m for m in messages if isinstance(m, Draft)]


def blocks_of(messages):
    return [m for m in messages if isinstance(m, Block)]


def test_each_step_before_the_last_one_of_a_block_has_a_draft(worker):
    messages = list(worker.generate(request(drafts_every=1)))
    assert [(type(m), m.index) for m in messages] == [
        (kind, index) for index in range(3) for kind in [Draft] * (STEPS - 1) + [Block]
    ]
    assert [draft.step for draft in drafts_of(messages)] == [1, 2, 3] * 3
    for draft in drafts_of(messages):
        assert len(draft.tokens) == len(draft.accepted) == (4 if draft.index == 2 else CANVAS)
        assert draft.entropy > 0


def test_drafts_change_nothing_about_the_answer(worker):
    plain = list(worker.generate(request()))
    watched = blocks_of(worker.generate(request(drafts_every=1)))
    assert not drafts_of(plain)
    assert [b.tokens for b in watched] == [b.tokens for b in plain]
    assert [b.denoising_steps for b in watched] == [b.denoising_steps for b in plain]
    assert all(b.settled is b.entropy is None for b in plain)


def test_the_last_draft_that_settles_is_the_block(worker):
    """The figures of the block count what its drafts show, with the block as the last of them."""
    messages = list(worker.generate(request(drafts_every=1)))
    for block in blocks_of(messages):
        shown = [d.tokens for d in drafts_of(messages) if d.index == block.index] + [block.tokens]
        positions = range(len(block.tokens))
        assert block.settled == [
            sum(all(each[i] == block.tokens[i] for each in shown[step:]) for i in positions)
            for step in range(STEPS)
        ]


def test_accepted_positions_are_those_that_the_sampler_accepts(worker, monkeypatch):
    accepted = []
    accept = denoising_step.accept
    monkeypatch.setattr(
        denoising_step, "accept", lambda *args: accepted.append(accept(*args)) or accepted[-1]
    )
    bounded = request(max_tokens=CANVAS, drafts_every=1, entropy_bound=0.0)
    drafts = drafts_of(worker.generate(bounded))
    assert [d.accepted for d in drafts] == [each[0].tolist() for each in accepted[:-1]]
    assert all(any(d.accepted) and not all(d.accepted) for d in drafts)


@pytest.mark.parametrize(("every", "steps"), [(2, [2]), (3, [3]), (4, []), (1024, [])])
def test_drafts_can_be_sent_for_every_other_step_only(worker, every, steps):
    drafts = drafts_of(worker.generate(request(max_tokens=CANVAS, drafts_every=every)))
    assert [draft.step for draft in drafts] == steps


def test_drafts_within_the_interval_since_the_last_one_are_left_out(worker):
    options = {"drafts_every": 1, "drafts_interval_s": 1e9}
    for _ in range(2):  # each answer has an interval of its own
        drafts = drafts_of(worker.generate(request(**options)))
        assert [(draft.index, draft.step) for draft in drafts] == [(0, 1)]


def test_only_requests_that_ask_for_drafts_get_them_in_a_common_pass(worker):
    worker.handle(request("watched", drafts_every=1))
    worker.handle(request("plain", seed=2))
    messages = []
    while not worker.idle:
        messages += worker.step()
    assert {draft.id for draft in drafts_of(messages)} == {"watched"}
    alone = blocks_of(worker.generate(request("plain", seed=2)))
    assert [b.tokens for b in messages if b.id == "plain"] == [b.tokens for b in alone]


def test_a_lead_comes_first_in_the_drafts_of_the_first_block(worker):
    messages = list(worker.generate(request(lead=[7, 8], drafts_every=1)))
    for draft in drafts_of(messages):
        assert (draft.tokens[:2] == [7, 8]) is (draft.index == 0)
        assert len(draft.tokens) == len(draft.accepted)
        assert draft.index > 0 or draft.accepted[:2] == [True, True]
    first = blocks_of(messages)[0]
    assert first.settled[-1] == len(first.tokens) == CANVAS + 2


def test_a_suffix_is_no_part_of_a_draft(worker):
    drafts = drafts_of(worker.generate(request(max_tokens=5, suffix=[7, 8], drafts_every=1)))
    assert [len(draft.tokens) for draft in drafts] == [5] * (STEPS - 1)


def test_a_draft_ends_where_the_block_would(worker):
    (first, *_) = drafts_of(worker.generate(request(drafts_every=1)))
    end = first.tokens[3]
    expected = first.tokens[: first.tokens.index(end) + 1]
    (cut, *_) = drafts_of(worker.generate(request(stop_token_ids=[end], drafts_every=1)))
    assert cut.tokens == expected
    assert len(cut.accepted) == len(expected)


def test_drafts_of_a_block_whose_first_step_a_speculation_made_are_complete(denoiser, monkeypatch):
    sampler = dataclasses.replace(denoiser.sampler, confidence_threshold=100.0)
    monkeypatch.setattr(denoiser, "sampler", sampler)
    worker = Worker(denoiser, EngineConfig(speculate=True))
    messages = list(worker.generate(request(max_tokens=40, drafts_every=1)))
    won = [block.index for block in blocks_of(messages) if block.speculation_won]
    assert won
    for index in won:
        assert (index + 1, 1) in [(draft.index, draft.step) for draft in drafts_of(messages)]
    assert all(len(b.settled) == b.denoising_steps for b in blocks_of(messages))


@pytest.mark.parametrize(
    "options", [{"drafts_every": -1}, {"drafts_every": 2000}, {"drafts_interval_s": float("nan")}]
)
def test_options_out_of_their_range_are_refused(worker, options):
    (failed,) = worker.generate(request(**options))
    assert isinstance(failed, Failed)
    assert next(iter(options)) in failed.message


def test_a_draft_survives_its_way_through_the_codec():
    draft = Draft("a", 1, 2, [3, 4], [True, False], 0.5)
    assert decode_from_worker(encoded(draft)) == draft
