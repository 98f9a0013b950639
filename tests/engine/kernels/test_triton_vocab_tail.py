"""Compares the GPU's vocabulary tail with the CPU's."""

from functools import partial

import pytest
import torch

from engine.tail.vocab_tail import Bias, apart, draw, triton_draw, triton_vocab_tail, vocab_tail
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
        hidden,
        embedding,
        temperatures,
        **scales,
        least_temperatures=[(slice(0, ROWS), float(temperatures.min()))],
    )
    assert torch.equal(result.argmax, plain.argmax)
    torch.testing.assert_close(result.entropy, plain.entropy, atol=5e-5, rtol=0)
    torch.testing.assert_close(result.soft_embeddings, plain.soft_embeddings, atol=2e-4, rtol=0)
    wanted = torch.ones(ROWS, dtype=torch.bool)
    for seed in range(20):
        uniforms = torch.rand(ROWS, generator=torch.Generator().manual_seed(seed))
        inputs = (hidden, embedding, temperatures, uniforms, wanted)
        expected = draw(plain, *inputs, softcap=30.0)
        assert torch.equal(draw(result, *inputs, softcap=30.0), expected)
        assert torch.equal(triton_draw(result, *inputs, softcap=30.0), expected)


@pytest.mark.parametrize("scheme", [None, "int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_draw_for_gpus_has_the_tokens_of_the_draw_for_cpus(scheme, dtype):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, 96, generator=generator).to(dtype)  # not a whole number of tiles
    embedding = torch.randn(1280, 96, generator=generator).to(dtype)
    if scheme is not None:
        embedding = quantize(embedding, scheme, torch.device("cpu"))
    temperatures = torch.linspace(0.3, 1.2, ROWS)
    scales = {"softcap": 30.0, "embedding_scale": 4.0}
    tail = vocab_tail(hidden, embedding, temperatures, **scales)
    wanted = torch.arange(ROWS) % 3 != 1
    same = 0
    for seed in range(20):
        uniforms = torch.rand(ROWS, generator=torch.Generator().manual_seed(seed))
        inputs = (hidden, embedding, temperatures, uniforms, wanted)
        drawn = triton_draw(tail, *inputs, softcap=30.0)
        assert not drawn[~wanted].any()
        same += int((drawn == draw(tail, *inputs, softcap=30.0))[wanted].sum())
    # The CPU's bfloat16 products are rounded after other sums, so that now and then one differs.
    assert same >= 20 * int(wanted.sum()) - (0 if dtype == torch.float32 else 6)


BIASES = [
    Bias(slice(1, 4), torch.randn(1280, generator=torch.Generator().manual_seed(3)) * 4),
    Bias(
        slice(5, 8),
        torch.zeros(1280).index_fill_(0, torch.arange(0, 1280, 3), -1e9),
        torch.linspace(0.5, 2, 1280),
    ),
    Bias(slice(5, 6), torch.full((1280,), 50.0).index_fill_(0, torch.arange(640), -1e9)),
]


@pytest.mark.parametrize("scheme", [None, "int8"])
@pytest.mark.parametrize("temperature", [0.7, 0.1])  # with the constant shift and without
def test_a_bias_is_added_in_the_kernels_and_other_rows_stay_as_they_are(scheme, temperature):
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator)
    embedding = torch.randn(1280, HIDDEN, generator=generator)
    if scheme is not None:
        embedding = quantize(embedding, scheme, torch.device("cpu"))
    temperatures = torch.full((ROWS,), temperature)
    inputs, scales = (hidden, embedding, temperatures), {"softcap": 30.0, "embedding_scale": 4.0}
    least = [(slice(0, 5), temperature), (slice(5, ROWS), temperature)]
    uniforms, wanted = torch.rand(ROWS, generator=generator), torch.ones(ROWS, dtype=torch.bool)

    def results(biases):
        tail = triton_vocab_tail(*inputs, **scales, least_temperatures=least, biases=biases)
        drawn = triton_draw(tail, *inputs, uniforms, wanted, softcap=30.0, biases=biases)
        return tail, drawn

    plain = vocab_tail(*inputs, **scales, biases=BIASES)
    expected = draw(plain, *inputs, uniforms, wanted, softcap=30.0, biases=BIASES)
    (tail, drawn), (unbiased, drawn_unbiased) = results(BIASES), results([])
    assert torch.equal(tail.argmax, plain.argmax)
    torch.testing.assert_close(tail.entropy, plain.entropy, atol=5e-5, rtol=0)
    torch.testing.assert_close(tail.soft_embeddings, plain.soft_embeddings, atol=2e-4, rtol=0)
    assert torch.equal(drawn, expected)
    others = [0, 4, 8]
    for name in ("argmax", "entropy", "soft_embeddings", "group_mass"):
        assert torch.equal(getattr(tail, name)[others], getattr(unbiased, name)[others])
    assert torch.equal(drawn[others], drawn_unbiased[others])
    assert not torch.equal(tail.argmax[1:4], unbiased.argmax[1:4])


def test_rows_of_other_temperatures_do_not_matter():
    generator = torch.Generator().manual_seed(2)
    hidden, embedding = torch.randn(ROWS, HIDDEN), torch.randn(160, HIDDEN, generator=generator)
    scales = {"softcap": 30.0, "embedding_scale": 4.0}

    def warm(cold):
        temperatures = torch.tensor([1.0] * 5 + [cold] * 4)
        least = [(slice(0, 5), 1.0), (slice(5, ROWS), cold)]
        tail = triton_vocab_tail(
            hidden, embedding, temperatures, **scales, least_temperatures=least
        )
        return tail.entropy[:5], tail.soft_embeddings[:5], tail.group_mass[:5]

    for ours, expected in zip(warm(1e-3), warm(1.0), strict=True):
        assert torch.equal(ours, expected)


def test_rows_are_split_where_their_biases_change():
    parts = [(part, bias is not None) for part, bias in apart(BIASES, slice(0, ROWS))]
    assert parts == [
        (slice(0, 1), False),
        (slice(1, 4), True),
        (slice(4, 5), False),
        (slice(5, 6), True),
        (slice(6, 8), True),
        (slice(8, 9), False),
    ]
    assert [part for part, _ in apart(BIASES, slice(2, 5))] == [slice(2, 4), slice(4, 5)]
    assert list(apart([], slice(3, 5))) == [(slice(3, 5), None)]
    both = list(apart(BIASES, slice(0, ROWS)))[3][1]
    assert torch.equal(both.values, BIASES[1].values + BIASES[2].values)
    assert both.factors is BIASES[1].factors


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
        triton_vocab_tail(
            hidden,
            embedding,
            temperatures,
            **scales,
            least_temperatures=[(slice(0, ROWS), temperature)],
        ),
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
        draws = draw if tail is vocab_tail else triton_draw
        tail = tail(hidden, embedding, temperatures, **scales)
        drawn = draws(tail, hidden, embedding, temperatures, uniforms, wanted, softcap=30.0)
        return tail.argmax, tail.entropy, tail.soft_embeddings, drawn

    for tail in (
        vocab_tail,
        partial(triton_vocab_tail, least_temperatures=[(slice(0, ROWS), 1.0)]),
    ):
        *_, drawn = results(damaged, tail)
        assert 0 <= drawn[4] < 1280
        for ours, expected in zip(results(damaged, tail), results(hidden, tail), strict=True):
            assert torch.equal(ours[others], expected[others])


def test_a_row_may_have_negative_logits_only():
    hidden, embedding = torch.full((1, HIDDEN), -1.0), torch.full((160, HIDDEN), 20 / HIDDEN)
    embedding[7] = 15 / HIDDEN  # the least negative one
    temperatures = torch.full((1,), 0.4)
    scales = {"softcap": 30.0, "embedding_scale": 4.0}
    result = triton_vocab_tail(
        hidden, embedding, temperatures, **scales, least_temperatures=[(slice(0, 1), 0.4)]
    )
    plain = vocab_tail(hidden, embedding, temperatures, **scales)
    assert result.argmax.tolist() == plain.argmax.tolist() == [7]
    torch.testing.assert_close(result.entropy, plain.entropy, atol=5e-5, rtol=0)
