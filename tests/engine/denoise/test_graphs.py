"""CUDA graphs, tested without a GPU: which passes use them, which are kept, how failures end.

A CUDA graph is replaced by a function that runs the captured work again, as a replay would.
"""

import dataclasses
import logging

import pytest
import torch

from bench.random_model import Shape, write_random_model
from engine.config import EngineConfig
from engine.denoise import graphs
from engine.denoise.denoiser import Denoiser
from engine.loading import build_denoiser
from engine.messages import Block, GenerateRequest, Sampling
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


def test_the_least_recently_used_graph_is_dropped(dynamic, capture, monkeypatch):
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 1)
    denoiser = like(dynamic, cuda_graphs=True)
    assert answers(denoiser) == answers(like(dynamic))
    captured = capture.captured
    answers(denoiser)
    assert capture.captured > captured  # the first graphs had been dropped


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a graph can be captured here")
def test_without_a_gpu_one_log_line_says_so_and_answers_are_the_same(dynamic, caplog):
    denoiser = like(dynamic, cuda_graphs=True)
    assert answers(denoiser) == answers(like(dynamic))
    (line,) = warnings_of(caplog)
    assert "dynamic" in line
    assert "CUDAGraph" in line  # the reason
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


def test_a_failed_compilation_is_logged_once_and_answers_are_the_same(dynamic, monkeypatch, caplog):
    def compile_nothing(function, **_options):
        def compiled(*_args):
            raise RuntimeError("no compiler")

        return compiled

    monkeypatch.setattr(torch, "compile", compile_nothing)
    assert answers(like(dynamic, compiled=True)) == answers(like(dynamic))
    (line,) = warnings_of(caplog)
    assert line.endswith("RuntimeError: no compiler")


def test_graphs_are_off_on_a_cpu_by_default(dynamic, caplog):
    answers(dynamic)
    assert dynamic._graphs is None
    assert not warnings_of(caplog)
