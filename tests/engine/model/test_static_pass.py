"""The pass in fixed shapes: its results are the dynamic pass', and a CUDA graph can hold it."""

import dataclasses
from contextlib import contextmanager

import pytest
import torch

from bench.compare import peak_bytes
from bench.compiled import Launches
from bench.counts import count
from bench.passes import encode
from bench.random_model import write_random_model
from engine.config import EngineConfig
from engine.kernels import grouped_linear
from engine.loading import build_denoiser
from engine.model.diffusion_gemma import DiffusionGemma, ModelConfig, Rope
from engine.model.kv_cache import KVCache, new_caches
from engine.model.rows import Segment
from engine.model.static_pass import Form, StaticPass
from engine.model.weight_map import weight_targets
from engine.sizing.activations import network_bytes
from engine.sizing.dimensions import Dimensions, LayerShape
from engine.sizing.kv import SLACK_TOKENS
from engine.weights.quantization import empty_quantized
from tests.parity.tiny_models import SHAPES

CAPACITY = 256
TOLERANCE = {"atol": 1e-5, "rtol": 0.0}
# Stored tokens: none, fewer than any window, more than a window and its slack, several caches.
STORED = [[0], [5], [CAPACITY], [29], [170, 3], [60, 250, 0, 33]]


@pytest.fixture(scope="module", params=SHAPES)
def model(request, tmp_path_factory):
    return load(SHAPES[request.param], tmp_path_factory)


@pytest.fixture(scope="module", params=["one-kv-head", "one-expert-a-token"])
def few_models(request, tmp_path_factory):
    """Returns models with few layers, for what is slow on Triton's interpreter."""
    return load(SHAPES[request.param], tmp_path_factory)


@pytest.fixture(params=["torch", "triton's attention"])
def kernels(request):
    """Returns the kernels of the pass. Triton's are interpreted instead of run on a GPU."""
    return request.param


class WithKernels(StaticPass):
    """A static pass with these kernels. The dynamic pass keeps PyTorch's."""

    def __init__(self, kernels, model, canvases):
        self._layers = model.each_layer()
        self._kernel = "triton" if kernels == "triton" else "torch"
        model.attention_kernel = "torch" if kernels == "torch" else "triton"
        with self._with_kernel():
            super().__init__(model, canvases=canvases)
        model.attention_kernel = "torch"

    @contextmanager
    def _with_kernel(self):
        for layer in self._layers:
            layer.kernel = self._kernel
        yield
        for layer in self._layers:
            layer.kernel = "torch"

    def run(self, caches, length):
        with self._with_kernel():
            return super().run(caches, length)


def load(shape, tmp_path_factory):
    folder = write_random_model(tmp_path_factory.mktemp("tiny"), shape)
    return build_denoiser(EngineConfig(model=str(folder), device="cpu")).model


def behind(model, stored):
    """Returns a random canvas behind each number of random tokens, and their self-conditioning."""
    generator = torch.Generator().manual_seed(0)
    config = model.config

    def tokens(length):
        return torch.randint(6, config.dimensions.vocab_size, (length,), generator=generator)

    segments = []
    caches = new_caches(
        len(stored),
        config.dimensions.layers,
        capacity=CAPACITY,
        pass_tokens=64,
        dtype=torch.float32,
        device=torch.device("cpu"),
        slack=SLACK_TOKENS,
    )
    for cache, length in zip(caches, stored, strict=True):
        for part in tokens(length).split(40) if length else ():
            encode(model, part, cache)
        segments.append(Segment(cache, tokens(config.dimensions.canvas_length), causal=False))
    shape = (len(stored), config.dimensions.canvas_length, config.dimensions.hidden_size)
    return segments, torch.randn(shape, generator=generator)


def run(static, segments, soft):
    assert static.takes(segments)
    static.fill(segments, soft)
    forms = tuple(map(Form.of, segments))
    return static.run(forms, static.length(forms))


@pytest.mark.parametrize("stored", STORED, ids=str)
@torch.inference_mode()
def test_results_are_those_of_the_dynamic_pass(model, kernels, stored):
    segments, soft = behind(model, stored)
    hidden = run(WithKernels(kernels, model, 4), segments, list(soft))
    torch.testing.assert_close(hidden, model.run(segments, soft.flatten(0, 1)), **TOLERANCE)


@torch.inference_mode()
def test_a_pass_does_not_depend_on_the_previous_one(model, kernels):
    static = WithKernels(kernels, model, 4)
    for stored in STORED:
        segments, soft = behind(model, stored)
        run(static, segments, list(soft))
        hidden = run(static, segments, [None] * len(stored))
        torch.testing.assert_close(hidden, model.run(segments), **TOLERANCE)


def with_commits(model, stored, kinds):
    """Returns the segments of `behind` as a pass in which sequences commit or speculate.

    `kinds` has "denoise", "commit" or "speculate" for each. Also returns the self-conditioning.
    """
    segments, _ = behind(model, stored)
    generator = torch.Generator().manual_seed(1)
    d, whole = model.dimensions, []

    def canvas(cache, **options):
        tokens = torch.randint(6, d.vocab_size, (d.canvas_length,), generator=generator)
        return Segment(cache, tokens, **options)

    for segment, kind in zip(segments, kinds, strict=True):
        if kind != "commit":
            whole.append(segment)
        if kind != "denoise":
            whole.append(canvas(segment.cache, causal=True))
            whole.append(canvas(segment.cache, causal=False, start=d.canvas_length))
    count = sum(not segment.causal for segment in whole)
    soft = torch.randn(count, d.canvas_length, d.hidden_size, generator=generator)
    return whole, soft


COMMITS = [
    ([0], ["commit"]),
    ([CAPACITY - 64], ["speculate"]),
    ([29], ["speculate"]),
    ([170, 3], ["denoise", "commit"]),
    ([60, 100, 0], ["commit", "speculate", "denoise"]),
]


@pytest.mark.parametrize(("stored", "kinds"), COMMITS, ids=str)
@torch.inference_mode()
def test_passes_that_commit_have_the_results_of_the_dynamic_pass(model, kernels, stored, kinds):
    check_commits(WithKernels(kernels, model, len(stored)), model, stored, kinds)


@torch.inference_mode()
def test_fused_layers_have_the_results_of_the_dynamic_pass(few_models):
    static = WithKernels("triton", few_models, 3)
    for stored in ([5], [170, 3], [60, 250, 0]):
        segments, soft = behind(few_models, stored)
        if len(stored) == 2:  # the second slot alone
            segments, soft = segments[1:], soft[1:]
        hidden = run(static, segments, list(soft))
        expected = few_models.run(segments, soft.flatten(0, 1))
        torch.testing.assert_close(hidden, expected, **TOLERANCE)


@pytest.mark.parametrize(("stored", "kinds"), [COMMITS[1], COMMITS[3]], ids=str)
@torch.inference_mode()
def test_fused_layers_commit_and_speculate(few_models, stored, kinds):
    check_commits(WithKernels("triton", few_models, len(stored)), few_models, stored, kinds)


@torch.inference_mode()
def test_fused_layers_need_at_most_the_planned_memory(few_models):
    static, d = WithKernels("triton", few_models, 1), few_models.dimensions
    segments, soft = behind(few_models, [29])
    run(static, segments, list(soft))  # what is made once
    most = peak_bytes(lambda: run(static, segments, list(soft)))
    assert most <= network_bytes(d, d.canvas_length, 4) <= 6 * most


def check_commits(static, model, stored, kinds):
    segments, soft = with_commits(model, stored, kinds)
    hidden = run(static, segments, list(soft))
    others, _ = with_commits(model, stored, kinds)
    expected = model.run(others, soft.flatten(0, 1))
    torch.testing.assert_close(hidden, expected, **TOLERANCE)
    # What is committed is stored in the same way, so that the next pass sees the same.
    for segment, other in zip(segments, others, strict=True):
        if segment.causal:
            segment.cache.advance(len(segment.tokens))
            other.cache.advance(len(other.tokens))
            for actual, stored_there in zip(
                segment.cache.view().tensors, other.cache.view().tensors, strict=True
            ):
                torch.testing.assert_close(actual, stored_there, **TOLERANCE)
    canvases = [Segment(s.cache, s.tokens, causal=False) for s in segments if not s.causal][-1:]
    there = [Segment(s.cache, s.tokens, causal=False) for s in others if not s.causal][-1:]
    torch.testing.assert_close(run(static, canvases, [None]), model.run(there), **TOLERANCE)


@torch.inference_mode()
def test_entries_behind_the_canvas_and_before_the_window_do_not_matter(model, kernels):
    segments, soft = behind(model, [100])
    static, cache = WithKernels(kernels, model, 1), segments[0].cache
    before = run(static, segments, list(soft))
    for index, layer in enumerate(model.dimensions.layers):
        stored = cache.stored(index)
        first = 0 if layer.window is None else max(0, stored - layer.window + 1)
        for tensor in cache.entries(index, CAPACITY, model.dimensions.canvas_length):
            # Triton's attention does not even read them.
            anything = 1e3 if kernels == "torch" else torch.nan
            tensor[:, :first] = anything
            tensor[:, stored + model.dimensions.canvas_length :] = anything
    assert torch.equal(run(static, segments, list(soft)), before)


def test_a_length_includes_the_canvas_and_serves_several_blocks(model):
    static, canvas = StaticPass(model, canvases=1), model.dimensions.canvas_length
    segments, _ = behind(model, [0])
    lengths = []
    for position in range(0, 100 * canvas, 3):
        segments[0].cache.position = position
        lengths.append(static.length((Form(segments[0].cache),)))
        end = position + canvas
        assert end <= lengths[-1] <= max(1.25 * end, end + 4 * canvas)
    assert lengths == sorted(lengths)
    assert len(set(lengths)) <= 4 + 4 * 4  # up to 16 canvases, then four a power of two


def test_one_length_serves_every_block_if_attention_reads_only_what_it_sees(model):
    static, canvas = WithKernels("triton", model, 1), model.dimensions.canvas_length
    caches = [segment.cache for segment in behind(model, [0, CAPACITY])[0]]
    assert {static.length((Form(cache),)) for cache in caches} == {CAPACITY + canvas}


def test_only_whole_canvases_and_the_blocks_before_them_are_taken(model):
    static, canvas = StaticPass(model, canvases=2), model.dimensions.canvas_length
    (segment, other), _ = behind(model, [5, 5])

    def part(cache, *, length=canvas, **options):
        return Segment(cache, segment.tokens[:length], **options)

    block, new = part(segment.cache, causal=True), part(segment.cache, causal=False, start=canvas)
    assert static.takes([segment])
    assert static.takes([segment, other])
    assert static.takes([block, new])
    assert static.takes([segment, block, new, other])
    for refused in (
        [part(segment.cache, length=canvas // 2, causal=False)],
        [block],  # nothing is denoised behind it
        [block, other],
        [block, block, new],
        [new],
        [part(segment.cache, length=canvas // 2, causal=True), new],
    ):
        assert not static.takes(refused)


def meta_pass(change=None, *, commits=False):
    """Returns the counts of a pass on the meta device, after `change` was applied to the model.

    On this device no value can be read, and no tensor of another device is accepted. It supports
    grouped_mm for bfloat16, as a GPU does.
    """
    layers = (LayerShape(2, 16, 16), LayerShape(1, 32, None))
    dimensions = Dimensions(
        vocab_size=160,
        hidden_size=32,
        mlp_size=64,
        query_heads=4,
        layers=layers,
        experts=4,
        experts_per_token=2,
        expert_size=32,
        canvas_length=16,
        max_positions=512,
        tower=None,
        quantized=False,
    )
    config = ModelConfig(
        dimensions,
        norm_eps=1e-6,
        softcap=30.0,
        sliding_rope=Rope(1e4),
        full_rope=Rope(1e6, 0.25),
        bidirectional_images=False,
    )
    device = torch.device("meta")
    with device:
        model = DiffusionGemma(config).bfloat16()
    model.__dict__["embedding_scale"] = 5.0  # otherwise a tensor's value is read, once
    if change is not None:
        change(model)
    cache = KVCache(layers, capacity=128, pass_tokens=32, dtype=torch.bfloat16, device=device)
    tokens = torch.zeros(16, dtype=torch.int64, device=device)
    static = StaticPass(model, canvases=1)
    segments = [Segment(cache, tokens, causal=False)]
    if commits:
        segments = [
            Segment(cache, tokens, causal=True),
            Segment(cache, tokens, causal=False, start=16),
        ]
    return count(lambda: run(static, segments, [None]), rows=1, vocab=1)


@pytest.mark.parametrize("commits", [False, True])
@torch.inference_mode()
def test_the_host_never_waits_and_sends_nothing(commits):
    work = meta_pass(commits=commits)
    assert work.launches > 50
    assert work.syncs == 0


def quantise(model, kernel):
    """Replace the experts' and linears' weights by empty quantised ones with this kernel."""
    for target in weight_targets(model):
        if target.kind in ("experts", "linears"):
            scheme = "int4" if target.kind == "experts" else "int8"
            weight = empty_quantized(target.shape, scheme, torch.device("meta"))
            target.put(dataclasses.replace(weight, kernel=kernel))


@torch.inference_mode()
def test_the_host_never_waits_in_triton_products_with_quantised_weights(monkeypatch):
    """Everything runs except for the kernel's launches, which are counted."""
    monkeypatch.setattr(grouped_linear, "_kernel", grouped_linear._kernel)  # so they are restored
    monkeypatch.setattr(grouped_linear, "target_of", grouped_linear.target_of)
    launches = Launches(grouped_linear)
    assert meta_pass(lambda model: quantise(model, "triton")).syncs == 0
    assert len(launches.calls) == 2 * 6


@torch.inference_mode()
def test_the_host_waits_for_group_sizes_in_plain_products_of_quantised_experts():
    with pytest.raises(NotImplementedError, match="meta tensor"):
        meta_pass(lambda model: quantise(model, "torch"))
