"""Compares the GPU's vocabulary tail with the CPU's."""

from functools import partial

import pytest
import torch

from engine.tail.vocab_tail import Bias, draw, triton_vocab_tail, vocab_tail
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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("scheme", [None, "int8", "fp8"])
@pytest.mark.parametrize("temperature", [0.7, 0.1])  # with the constant shift and without
@pytest.mark.parametrize("token", [0, 700, 1279])
def test_a_damaged_embedding_shows_in_every_row(value, scheme, temperature, token):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator)
    embedding = torch.randn(1280, HIDDEN, generator=generator)
    if scheme is None:
        embedding[token, 5] = value
    else:
        embedding = quantize(embedding, scheme, torch.device("cpu"))
        embedding.scales[token] = value
    temperatures = torch.full((ROWS,), temperature)
    scales = {"softcap": 30.0, "embedding_scale": 4.0}
    bias = Bias(slice(0, 3), torch.zeros(1280))
    for tail in (
        vocab_tail(hidden, embedding, temperatures, **scales),
        vocab_tail(hidden, embedding, temperatures, **scales, biases=[bias]),
        triton_vocab_tail(hidden, embedding, temperatures, **scales, least_temperature=temperature),
    ):
        assert not tail.soft_embeddings.isfinite().all(-1).any()
        assert ((tail.argmax >= 0) & (tail.argmax < 1280)).all()


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")  # of the interpreter's numpy
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_of_one_row_that_are_not_finite_leave_the_others_as_they_are(value):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator)
    embedding = torch.randn(1280, HIDDEN, generator=generator)
    temperatures, scales = torch.ones(ROWS), {"softcap": 30.0, "embedding_scale": 4.0}
    damaged, others = hidden.clone(), torch.arange(ROWS) != 4
    damaged[4, 7] = value
    wanted, uniforms = torch.ones(ROWS, dtype=torch.bool), torch.rand(ROWS, generator=generator)

    def results(hidden, tail):
        tail = tail(hidden, embedding, temperatures, **scales)
        drawn = draw(tail, hidden, embedding, temperatures, uniforms, wanted, softcap=30.0)
        return tail.argmax, tail.entropy, tail.soft_embeddings, drawn

    for tail in (vocab_tail, partial(triton_vocab_tail, least_temperature=1.0)):
        *_, drawn = results(damaged, tail)
        assert 0 <= drawn[4] < 1280
        for ours, expected in zip(results(damaged, tail), results(hidden, tail), strict=True):
            assert torch.equal(ours[others], expected[others])


def test_a_row_may_have_negative_logits_only():
    hidden, embedding = torch.full((1, HIDDEN), -1.0), torch.full((160, HIDDEN), 20 / HIDDEN)
    embedding[7] = 15 / HIDDEN  # the least negative one
    temperatures = torch.full((1,), 0.4)
    scales = {"softcap": 30.0, "embedding_scale": 4.0}
    result = triton_vocab_tail(hidden, embedding, temperatures, **scales, least_temperature=0.4)
    plain = vocab_tail(hidden, embedding, temperatures, **scales)
    assert result.argmax.tolist() == plain.argmax.tolist() == [7]
    torch.testing.assert_close(result.entropy, plain.entropy, atol=5e-5, rtol=0)
