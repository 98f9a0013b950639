"""The layers' parts around their products by Triton's kernels, in passes that encode."""

import pytest
import torch

from bench.random_model import Shape, write_random_model
from engine.config import EngineConfig
from engine.loading import build_denoiser
from engine.model.kv_cache import KVCache
from engine.model.rows import Segment


@pytest.mark.parametrize("formats", [{}, {"quantize_experts": "int8", "quantize_linears": "int8"}])
@torch.inference_mode()
def test_passes_that_encode_have_the_same_results(tmp_path, formats):
    write_random_model(tmp_path, Shape(layers="sf", experts=5, per_token=3))
    config = EngineConfig(model=str(tmp_path), device="cpu", quantized_cache=False, **formats)
    model = build_denoiser(config).model
    tokens = torch.arange(6, 6 + 20 + 16)

    def results(kernel):
        for layer in model.each_layer():
            layer.kernel = kernel
        cache = KVCache(
            model.dimensions.layers,
            capacity=64,
            pass_tokens=64,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        prompt = Segment(cache, tokens[:20], causal=True)
        hidden = model.run([prompt, Segment(cache, tokens[20:], causal=False, start=20)])
        cache.advance(20)
        return [hidden, *cache.view().tensors]

    for actual, expected in zip(results("triton"), results("torch"), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0.0)
