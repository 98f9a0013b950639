"""Compares the GPU's vocabulary tail with the CPU's."""

import pytest
import torch

from engine.tail.vocab_tail import draw, triton_vocab_tail, vocab_tail
from engine.weights.quantization import quantize

ROWS, HIDDEN = 9, 32


@pytest.mark.parametrize("vocab", [160, 1280, 4352])
@pytest.mark.parametrize("temperature", [1.6, 0.7, 0.1])  # with the constant shift and without
@pytest.mark.parametrize("scheme", [None, "int8"])
def test_the_tail_for_gpus_has_the_results_of_the_tail_for_cpus(vocab, temperature, scheme):
    generator = torch.Generator().manual_seed(vocab)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator) * torch.linspace(0.01, 3, ROWS)[:, None]
    embedding = torch.randn(vocab, HIDDEN, generator=generator)
    if scheme is not None:
        embedding = quantize(embedding, scheme, torch.device("cpu"))
    temperatures = temperature * torch.linspace(0.6, 1.4, ROWS)
    scales = {"softcap": 30.0, "embedding_scale": 4.0}
    plain = vocab_tail(hidden, embedding, temperatures, **scales)
    result = triton_vocab_tail(
        hidden, embedding, temperatures, **scales, least_temperature=float(temperatures.min())
    )
    assert torch.equal(result.argmax, plain.argmax)
    torch.testing.assert_close(result.entropy, plain.entropy, atol=5e-5, rtol=0)
    torch.testing.assert_close(result.soft_embeddings, plain.soft_embeddings, atol=2e-4, rtol=0)
    wanted = torch.ones(ROWS, dtype=torch.bool)
    for seed in range(20):
        uniforms = torch.rand(ROWS, generator=torch.Generator().manual_seed(seed))
        ours, theirs = (
            draw(each, hidden, embedding, temperatures, uniforms, wanted, softcap=30.0)
            for each in (result, plain)
        )
        assert torch.equal(ours, theirs)


def test_a_row_may_have_negative_logits_only():
    hidden, embedding = torch.full((1, HIDDEN), -1.0), torch.full((160, HIDDEN), 20 / HIDDEN)
    embedding[7] = 15 / HIDDEN  # the least negative one
    temperatures = torch.full((1,), 0.4)
    scales = {"softcap": 30.0, "embedding_scale": 4.0}
    result = triton_vocab_tail(hidden, embedding, temperatures, **scales, least_temperature=0.4)
    plain = vocab_tail(hidden, embedding, temperatures, **scales)
    assert result.argmax.tolist() == plain.argmax.tolist() == [7]
    torch.testing.assert_close(result.entropy, plain.entropy, atol=5e-5, rtol=0)
