"""The estimate of a pass' memory, compared with the peak of a real network's passes."""

import pytest

from bench.compare import peak_bytes
from bench.random_model import Shape, write_random_model
from bench.roofline import released
from engine.config import EngineConfig
from engine.loading import build_denoiser
from engine.messages import GenerateRequest, Sampling
from engine.model.checkpoint import find_dimensions
from engine.sizing.activations import PassShape, activation_bytes
from engine.sizing.plan import make_plan
from engine.worker import Worker

SHAPES = {
    "vocabulary is largest": Shape(layers="ssf", canvas=32, vocab=16384),
    "experts are largest": Shape(layers="sf", hidden=256, expert=128, per_token=4, vocab=512),
    "attention is largest": Shape(
        layers="sf", query_heads=16, kv_heads=4, full_head=128, vocab=512
    ),
    "dense MLPs are largest": Shape(layers="sf", mlp=1024, vocab=512),
}


def run_to_the_end(worker):
    while not worker.idle:
        worker.step()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("canvases", "speculates"), [(1, False), (3, True)])
def test_passes_need_at_most_the_planned_memory_and_at_least_a_quarter_of_it(
    tmp_path, shape, canvases, speculates
):
    write_random_model(tmp_path, shape)
    config = EngineConfig(
        model=str(tmp_path),
        device="cpu",
        prefill_chunk=256,
        max_active=canvases,
        speculate=speculates,
        prefix_cache_mib=0,
    )
    denoiser = build_denoiser(config)
    requests = [
        GenerateRequest(
            str(number),
            [5 + number] * 400,
            max_tokens=2 * shape.canvas,
            sampling=Sampling(seed=number),
        )
        for number in range(canvases)
    ]
    worker = Worker(denoiser, config)
    for request in requests:
        assert worker.handle(request) == []
    most = peak_bytes(lambda: run_to_the_end(worker))
    planned = activation_bytes(
        find_dimensions(str(tmp_path)),
        PassShape(encoded=256, canvases=canvases, speculates=speculates, context=512),
        element_bytes=4,
        cuda=False,
    )
    assert most <= planned <= 4 * most


@pytest.mark.parametrize(
    "formats",
    [
        {"quantize_experts": "int8", "quantize_linears": "int8"},
        {"quantize_experts": "int4", "quantize_linears": "int4"},
        {"quantize_experts": "fp8", "quantize_linears": "fp8"},
        {"quantize_rest": "int8"},
        {"quantize_rest": "fp8"},
    ],
)
def test_memory_for_widening_quantised_weights_is_planned(tmp_path, formats):
    sizes = {"hidden": 512, "mlp": 1024, "head": 32, "full_head": 32, "expert": 32}
    write_random_model(tmp_path, Shape(layers="sf", **sizes, vocab=2048))
    config = EngineConfig(
        model=str(tmp_path),
        device="cpu",
        prefill_chunk=16,
        max_active=1,
        max_context=64,
        prefix_cache_mib=0,
        quantized_cache=False,
        **formats,
    )
    denoiser = build_denoiser(config)
    worker = Worker(denoiser, config)
    worker.handle(GenerateRequest("a", [5] * 16, max_tokens=16, sampling=Sampling(seed=0)))
    most = peak_bytes(lambda: run_to_the_end(worker))
    dimensions = find_dimensions(str(tmp_path))
    planned = make_plan(dimensions, config, cuda=False).activations
    plain = config.model_copy(update=dict.fromkeys(formats, "none"))
    assert make_plan(dimensions, plain, cuda=False).activations < most <= planned <= 3 * most


def test_on_a_gpu_the_logits_of_all_canvases_are_planned_once():
    def tail(canvases):
        shape = PassShape(encoded=1, canvases=canvases, speculates=False, context=256)
        return activation_bytes(released(), shape, element_bytes=2, cuda=True)

    logits = 2 * 256 * released().vocab_size
    assert logits < tail(9) - tail(8) < 1.2 * logits
    assert 8 * logits < tail(8) < 10 * logits


def test_the_attention_mask_of_a_long_context_is_planned():
    def planned(context):
        shape = PassShape(encoded=1024, canvases=1, speculates=False, context=context)
        return activation_bytes(released(), shape, element_bytes=2, cuda=True)

    # Eight query heads of a full layer share a key head. Their mask is held as bool and in 16 bits.
    assert planned(200_000) - planned(100_000) == 100_000 * 1024 * (1 + 8 * 3)
