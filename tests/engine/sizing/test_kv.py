"""The computed size of KV caches, compared with real caches."""

import pytest
import torch

from engine.config import EngineConfig
from engine.loading import build_denoiser
from engine.model.checkpoint import find_dimensions
from engine.model.kv_cache import KVCache
from engine.sizing.dimensions import Dimensions, LayerShape
from engine.sizing.kv import cache_elements
from engine.sizing.plan import make_plan
from tests.parity.tiny_models import SHAPES, write_seeing_model


@pytest.mark.parametrize("capacity", [1, 40, 64, 300])
@pytest.mark.parametrize("slack", [0, 5])
@pytest.mark.parametrize(
    "layers",
    [
        (LayerShape(2, 4, 8), LayerShape(1, 6, None)),
        (LayerShape(2, 4, 64), LayerShape(3, 6, 16), LayerShape(1, 6, None)),
        (LayerShape(1, 16, None),),
    ],
)
def test_a_cache_has_the_computed_size(layers, capacity, slack):
    cache = KVCache(
        layers,
        capacity=capacity,
        pass_tokens=24,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
        slack=slack,
    )
    elements = cache_elements(layers, capacity=capacity, pass_tokens=24, slack=slack)
    assert cache.nbytes == 2 * elements


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_context": 100, "prefill_chunk": 7, "max_active": 2},
        {"max_context": 64, "prefill_chunk": 300, "max_active": 1},
    ],
)
def test_the_plan_has_the_bytes_for_keys_and_values_that_the_engine_allocates(
    tmp_path, shape, options
):
    write_seeing_model(tmp_path, shape)
    config = EngineConfig(model=str(tmp_path), device="cpu", prefix_cache_mib=0, **options)
    dimensions = find_dimensions(config.model_path)
    denoiser = build_denoiser(config)
    # The tiny processor makes 70 tokens of an image, but the plan assumes 280.
    limit = max(config.prefill_chunk, denoiser.vision.most_tokens)
    known = Dimensions(**{**vars(dimensions), "tower": None})
    plan = make_plan(known, config.model_copy(update={"prefill_chunk": limit}), cuda=False)
    assert plan.kv == sum(cache.nbytes for cache in denoiser._caches)
    assert plan.canvases == len(denoiser._caches)
    longer = config.model_copy(update={"prefill_chunk": config.prefill_chunk})
    assert make_plan(dimensions, longer, cuda=False).kv >= plan.kv
