"""The fingerprint of a loaded model and its settings."""

import pytest
import torch

from engine.config import EngineConfig
from engine.fingerprint import fingerprint
from engine.loading import build_denoiser


def made(**options):
    config = EngineConfig(device="cpu", threads=1, **options)
    return fingerprint(build_denoiser(config), config)


@pytest.fixture(scope="module")
def usual():
    return made()


@pytest.mark.parametrize("options", [{}, {"max_active": 2}, {"prefix_cache_mib": 0}])
def test_it_is_the_same_for_the_same_answers(usual, options):
    assert made(**options) == usual


@pytest.mark.parametrize(
    "options",
    [
        {"quantize_experts": "int8"},
        {"dtype": "bfloat16"},
        {"prefill_chunk": 64},
        {"max_context": 512},
        {"early_end": True},
    ],
)
def test_it_is_another_one_with_a_setting_that_may_change_answers(usual, options):
    assert made(**options) != usual


def test_it_is_another_one_with_other_weights(usual):
    config = EngineConfig(device="cpu", threads=1)
    denoiser = build_denoiser(config)
    assert fingerprint(denoiser, config) == usual
    with torch.no_grad():
        denoiser.model.norm.weight += 1e-3
    assert fingerprint(denoiser, config) != usual
