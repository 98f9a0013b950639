"""CUDA graphs, tested without a GPU: which passes use them, which are kept, how failures end.

A CUDA graph is replaced by a function that runs the captured work again, as a replay would.
"""

import dataclasses
import logging
import random
import re
import weakref

import pytest
import torch

from bench.random_model import Shape, write_random_model
from engine.config import EngineConfig
from engine.denoise import graphs
from engine.denoise.denoiser import Denoiser
from engine.loading import build_denoiser
from engine.messages import Block, GenerateRequest, Sampling
from engine.model.rows import Segment
from engine.model.static_pass import Form, StaticPass
from engine.worker import Worker

TINY = Shape(layers="sf", canvas=8, confidence_threshold=1e-9, steps=4)
CANVASES = 2


class Repeated:
    """Stands in for `Capture`, and counts the captures and replays."""

    def __init__(self):
        self.captured = self.replayed = 0

    def __call__(self, work):
        self.captured += 1

        def replay():
            self.replayed += 1
            return work()

        return replay


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    folder = write_random_model(tmp_path_factory.mktemp("tiny"), TINY)
    denoiser = build_denoiser(EngineConfig(model=str(folder), device="cpu", max_context=256))
    denoiser.sampler = dataclasses.replace(denoiser.sampler, end_tokens=frozenset(), padding=None)
    return denoiser


@pytest.fixture
def capture(monkeypatch):
    repeated = Repeated()
    monkeypatch.setattr(graphs, "Capture", lambda: repeated)
    return repeated


def like(dynamic, **options):
    return Denoiser(
        dynamic.model,
        dynamic.sampler,
        context_length=256,
        prefill_chunk=64,
        max_active=CANVASES,
        **options,
    )


REQUESTS = (
    GenerateRequest("a", list(range(6, 30)), 60, Sampling(seed=1)),
    GenerateRequest("b", [7] * 90, 100, Sampling(seed=2)),
    GenerateRequest("c", [8, 9], 30, Sampling(seed=3, temperature=0)),
)


def answers(denoiser, requests=REQUESTS, **config):
    """Returns the tokens of each request's answer. The requests share their passes."""
    worker = Worker(denoiser, EngineConfig(prefill_chunk=64, max_active=CANVASES, **config))
    messages = [message for request in requests for message in worker.handle(request)]
    while not worker.idle:
        messages += worker.step()
    blocks = [message for message in messages if isinstance(message, Block)]
    return {r.id: [t for b in blocks if b.id == r.id for t in b.tokens] for r in requests}


@pytest.mark.parametrize("options", [{}, {"speculate": True}], ids=str)
def test_whole_answers_are_token_identical(dynamic, capture, options):
    assert answers(like(dynamic, cuda_graphs=True), **options) == answers(like(dynamic), **options)
    assert capture.replayed > 3 * capture.captured > 0


def test_a_second_answer_captures_nothing_new(dynamic, capture):
    denoiser = like(dynamic, cuda_graphs=True)
    first = answers(denoiser, REQUESTS[:1])
    captured, replayed = capture.captured, capture.replayed
    assert answers(denoiser, REQUESTS[:1]) == first
    assert capture.captured == captured
    assert capture.replayed == 2 * replayed


def test_all_graphs_are_dropped_if_there_are_too_many(dynamic, capture, monkeypatch):
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 1)
    denoiser = like(dynamic, cuda_graphs=True)
    assert answers(denoiser) == answers(like(dynamic))
    captured = capture.captured
    answers(denoiser)
    assert capture.captured > captured  # the first graphs had been dropped


@pytest.fixture
def any_length(dynamic, monkeypatch):
    """Lets passes use Triton's attention, which is interpreted here."""
    monkeypatch.setattr(dynamic.model, "attention_kernel", "triton")


@pytest.mark.usefixtures("any_length")
def test_all_graphs_are_made_before_the_first_request(dynamic, capture):
    denoiser = like(dynamic, cuda_graphs=True)
    denoiser.prepare()
    # Of one slot, the other and both, each also with one slot's block committed.
    assert denoiser.captured_graphs == capture.captured == 3 + 4
    dynamic.model.attention_kernel = "torch"
    assert answers(denoiser) == answers(like(dynamic))
    assert capture.captured == 7
    assert capture.replayed > 9


@pytest.mark.usefixtures("any_length")
def test_with_fused_layers_a_graph_serves_all_slots(dynamic, capture, monkeypatch):
    for layer in dynamic.model.each_layer():
        monkeypatch.setattr(layer, "kernel", "triton")
    denoiser = like(dynamic, cuda_graphs=True)
    denoiser.prepare()
    assert capture.captured == 2 + 2  # of one canvas and of two, each also with a commit
    static, caches = denoiser._graphs._static, denoiser._caches
    one, other = ((Form(cache),) for cache in caches)
    assert static.key(one) == static.key(other) != static.key(one + other)
    draft = (Form(caches[0]), Form(caches[0], causal=True), Form(caches[0], start=TINY.canvas))
    assert static.key(draft) == draft  # the draft overwrites the entries of the canvas


def graphs_of(dynamic, capture, most, monkeypatch, **options):
    """Returns how many graphs are made at the start if `most` may be kept."""
    monkeypatch.setattr(graphs, "MOST_GRAPHS", most)
    capture.captured = 0
    like(dynamic, cuda_graphs=True, **options).prepare()
    return capture.captured


@pytest.mark.usefixtures("any_length")
def test_the_most_frequent_passes_have_graphs_if_not_all_can(dynamic, capture, monkeypatch):
    def made(most, **options):
        return graphs_of(dynamic, capture, most, monkeypatch, **options)

    denoise, alone, together = 3, 2, 2
    assert made(2) == 0
    assert made(3) == made(4) == denoise
    assert made(5) == made(6) == denoise + alone
    assert made(7) == made(99) == denoise + alone + together
    assert made(99, speculate=True) == denoise + 2 * (alone + together)
    assert made(8, speculate=True) == denoise + 2 * alone


@pytest.mark.usefixtures("any_length")
@pytest.mark.parametrize("speculate", [False, True])
def test_only_prompts_are_dynamic(dynamic, capture, monkeypatch, speculate):
    """A block's first pass commits the block before, and a speculative one commits a draft."""
    denoiser = like(dynamic, cuda_graphs=True, speculate=speculate)
    denoiser.sampler = dataclasses.replace(denoiser.sampler, confidence_threshold=1.0)
    denoiser.prepare()
    monkeypatch.setattr(dynamic.model, "attention_kernel", "torch")
    run, dynamic_passes, forms = dynamic.model.run, [], set()
    static_run = StaticPass.run

    def recorded(segments, soft):
        dynamic_passes.append([len(s.tokens) for s in segments if s.causal])
        return run(segments, soft)

    def recorded_statically(self, segments, length):
        forms.add(tuple((form.causal, form.start) for form in segments))
        return static_run(self, segments, length)

    monkeypatch.setattr(dynamic.model, "run", recorded)
    monkeypatch.setattr(StaticPass, "run", recorded_statically)
    request = GenerateRequest("a", list(range(6, 30)), 60, Sampling(seed=1))
    replayed = capture.replayed
    made = answers(denoiser, [request], speculate=speculate)
    assert dynamic_passes == [[24]]
    assert capture.replayed > replayed + 7
    denoise, commit = (False, 0), ((True, 0), (False, TINY.canvas))
    assert forms == {(denoise,), commit, (denoise, *commit)} if speculate else {(denoise,), commit}
    monkeypatch.setattr(dynamic.model, "run", run)
    plain = like(dynamic)
    plain.sampler = denoiser.sampler
    assert made == answers(plain, [request])


def test_nothing_is_made_before_the_first_request_if_each_length_has_a_graph(dynamic, capture):
    denoiser = like(dynamic, cuda_graphs=True)
    denoiser.prepare()
    assert capture.captured == 0


class StaleReplayError(AssertionError):
    pass


class Freed:
    """Stands in for `Capture` as torch 2.13 is: a destroyed graph frees its stream's workspaces.

    All graphs have one stream, so a replay fails if any graph was destroyed after its capture.
    """

    def __init__(self):
        self.destroyed = self.replayed = 0

    def __call__(self, work):
        captured_at = self.destroyed

        def replay():
            self.replayed += 1
            if captured_at != self.destroyed:
                raise StaleReplayError
            return work()

        weakref.finalize(replay, self._destroy)
        return replay

    def _destroy(self):
        self.destroyed += 1


class AnyPass:
    """Stands in for a pass whose length has several values, so that graphs are often dropped."""

    any_length = False
    seen_length = 0

    def __init__(self, *_args, **_options):
        self.waited = 0

    def takes(self, _segments):
        return True

    def fill(self, *_args):
        pass

    def key(self, forms):
        return forms

    def length(self, _forms):
        return self.seen_length

    def run(self, forms, length):
        return torch.tensor([len(forms), length])

    def synchronize(self):
        self.waited += 1


def test_no_replay_uses_a_workspace_that_a_destroyed_graph_has_freed(monkeypatch):
    capture, static, chance = Freed(), AnyPass(), random.Random(0)
    monkeypatch.setattr(graphs, "Capture", lambda: capture)
    monkeypatch.setattr(graphs, "StaticPass", lambda *_args, **_options: static)
    runner = graphs.Graphs(None, canvases=3, capture=True)
    slots = [Segment(object(), torch.zeros(1), causal=False) for _ in range(3)]
    for _ in range(10_000):
        static.seen_length = chance.randrange(20)
        segments = sorted(chance.sample(slots, chance.randint(1, 3)), key=slots.index)
        hidden = runner.run(segments, [None] * len(segments))
        assert hidden.tolist() == [len(segments), static.seen_length]
    assert capture.replayed == 10_000
    assert static.waited == capture.destroyed / graphs.MOST_GRAPHS > 100


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a graph can be captured here")
def test_without_a_gpu_one_log_line_says_so_and_answers_are_the_same(dynamic, caplog):
    denoiser = like(dynamic, cuda_graphs=True)
    assert answers(denoiser) == answers(like(dynamic))
    (line,) = warnings_of(caplog)
    # A CPU build of torch has no CUDAGraph, and a CUDA build finds no driver.
    assert re.search(r"all passes are dynamic: \w+Error: \S", line)
    assert "\n" not in line


def test_a_replay_that_fails_during_an_answer_changes_no_token(
    dynamic, capture, monkeypatch, caplog
):
    def run_out(work):
        replay, left = Repeated()(work), iter(range(2))

        def failing():
            if next(left, None) is None:
                raise RuntimeError("the device\nis gone")
            return replay()

        return failing

    monkeypatch.setattr(graphs, "Capture", lambda: run_out)
    assert answers(like(dynamic, cuda_graphs=True)) == answers(like(dynamic))
    (line,) = warnings_of(caplog)
    assert line.endswith("RuntimeError: the device is gone")


def test_graphs_are_off_on_a_cpu_by_default(dynamic, caplog):
    answers(dynamic)
    assert dynamic._graphs is None
    assert not warnings_of(caplog)
