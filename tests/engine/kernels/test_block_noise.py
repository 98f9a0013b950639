"""Compares the kernel's random numbers with those of plain operations, bit by bit."""

import pytest
import torch

from engine.denoise.noise import block_noise

OPTIONS = {"canvas_length": 256, "vocab_size": 262144, "device": torch.device("cpu")}


@pytest.mark.filterwarnings("ignore:overflow encountered")  # of the interpreter's numpy
@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1, 2**63 + 5, 2**64 - 1])
@pytest.mark.parametrize(("block", "stream"), [(0, 0), (3, 1), (1000, 2**31), (5, 2**32 - 1)])
def test_the_bits_are_those_of_plain_operations(seed, block, stream):
    plain = block_noise(seed, block, steps=48, stream=stream, **OPTIONS)
    ours = block_noise(seed, block, steps=48, stream=stream, kernel="triton", **OPTIONS)
    assert torch.equal(ours.canvases, plain.canvases)
    assert torch.equal(ours.uniforms, plain.uniforms)
    assert ours.canvases.dtype == plain.canvases.dtype
    assert ours.uniforms.dtype == plain.uniforms.dtype


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize(("steps", "canvas_length", "vocab_size"), [(1, 1, 2), (5, 13, 160)])
def test_canvases_may_have_any_width_steps_and_vocabulary(steps, canvas_length, vocab_size):
    options = {"canvas_length": canvas_length, "vocab_size": vocab_size}
    options = {"steps": steps, **options, "device": torch.device("cpu")}
    plain, ours = block_noise(9, 1, **options), block_noise(9, 1, kernel="triton", **options)
    assert torch.equal(ours.canvases, plain.canvases)
    assert torch.equal(ours.uniforms, plain.uniforms)
