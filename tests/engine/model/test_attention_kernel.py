"""Dynamic passes with Triton's attention, as on a GPU on which it was chosen."""

import pytest
import torch

from bench.passes import encoder_states
from bench.random_model import write_random_model
from engine.config import EngineConfig
from engine.kernels import prefix_attention
from engine.loading import build_denoiser
from engine.model.kv_cache import KVCache
from engine.model.rows import ImageRows, Segment
from tests.parity.tiny_models import SHAPES

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=SHAPES)
def model(request, tmp_path_factory):
    folder = write_random_model(tmp_path_factory.mktemp("tiny"), SHAPES[request.param])
    return build_denoiser(EngineConfig(model=str(folder), device="cpu")).model


def new_cache(model):
    return KVCache(
        model.dimensions.layers, capacity=256, pass_tokens=128, dtype=torch.float32, device=CPU
    )


def tokens(count, seed=0):
    return torch.randint(6, 160, (count,), generator=torch.Generator().manual_seed(seed))


def image(model, start, count):
    generator = torch.Generator().manual_seed(1)
    shape = (count, model.dimensions.hidden_size)
    return ImageRows(start, torch.randn(shape, generator=generator))


def passes(model):
    """Returns the results of passes over two sequences.

    They encode both prompts in chunks, then run canvases, one of them behind tokens that the same
    pass encodes.
    """
    caches, results = [new_cache(model), new_cache(model)], []
    for first, second in ((37, 1), (5, 70), (40, 40)):
        segments = [
            Segment(cache, tokens(count), causal=True)
            for cache, count in zip(caches, (first, second), strict=True)
        ]
        results.append(encoder_states(model, segments))
        for cache, segment in zip(caches, segments, strict=True):
            cache.advance(segment.tokens.shape[0])
    canvas = model.dimensions.canvas_length
    segments = [
        Segment(caches[0], tokens(7), causal=True),
        Segment(caches[0], tokens(canvas, 1), causal=False, start=7),
        Segment(caches[1], tokens(canvas // 2, 2), causal=False),
    ]
    return [*results, model.run(segments)]


@torch.inference_mode()
def test_passes_that_encode_have_the_same_results(model, monkeypatch):
    plain = passes(model)
    launches, attend = [], prefix_attention.prefix_attention

    def counted(queries, *args, **options):
        launches.append(options)
        return attend(queries, *args, **options)

    monkeypatch.setattr(model, "attention_kernel", "triton")
    monkeypatch.setattr(prefix_attention, "prefix_attention", counted)
    for actual, expected in zip(passes(model), plain, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0.0)
    layers = len(model.dimensions.layers)
    # The last layer needs only keys and values of the tokens encoded before a canvas.
    assert len(launches) == (3 * 2 + 3) * layers - 1


@torch.inference_mode()
def test_images_whose_tokens_see_each_other_have_the_same_results(model, monkeypatch):
    assert model.config.bidirectional_images
    images = (image(model, 3, 20), image(model, 30, 9))

    def encoded():
        segment = Segment(new_cache(model), tokens(50), causal=True, images=images)
        return encoder_states(model, [segment])

    plain = encoded()
    monkeypatch.setattr(model, "attention_kernel", "triton")
    torch.testing.assert_close(encoded(), plain, atol=1e-5, rtol=0.0)
