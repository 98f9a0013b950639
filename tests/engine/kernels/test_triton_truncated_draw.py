"""Compares the GPU's draws from the likeliest tokens with the CPU's."""

import pytest
import torch

from engine.tail.truncated_draw import triton_truncated_draw, truncated_draw
from engine.tail.vocab_tail import Bias
from engine.weights.quantization import quantize
from tests.engine.tail.test_truncated_draw import CUTS

ROWS, HIDDEN = 8, 32
SOFTCAP = 30.0


@pytest.fixture(autouse=True)
def chunks(monkeypatch):
    """Makes chunks so small that the larger vocabulary has several."""
    monkeypatch.setattr("engine.kernels.vocab_draw._CHUNK", 512)


def case(vocab):
    """Returns hidden states of sharp and flat rows, an embedding and temperatures."""
    generator = torch.Generator().manual_seed(vocab)
    flatness = torch.linspace(0.02, 3, ROWS)[:, None]
    hidden = torch.randn(ROWS, HIDDEN, generator=generator) * flatness
    embedding = torch.randn(vocab, HIDDEN, generator=generator)
    embedding[7:9] = embedding[5]  # equally likely tokens
    return hidden, embedding, torch.linspace(0.4, 1.4, ROWS)


def drawn(inputs, uniforms, wanted, rows, **options):
    tokens = torch.full((ROWS,), -1)
    triton_truncated_draw(*inputs, uniforms, wanted, tokens, rows, softcap=SOFTCAP, **options)
    return tokens


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), CUTS)
@pytest.mark.parametrize("vocab", [160, 1280])  # one chunk and three
def test_the_tokens_are_those_of_the_plain_draw(vocab, top_k, top_p, min_p):
    inputs = case(vocab)
    cuts = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    for seed in range(2):
        uniforms = torch.rand(ROWS, generator=torch.Generator().manual_seed(seed))
        every = torch.ones(ROWS, dtype=torch.bool)
        expected = truncated_draw(*inputs, uniforms, torch.arange(ROWS), softcap=SOFTCAP, **cuts)
        assert torch.equal(drawn(inputs, uniforms, every, slice(0, ROWS), **cuts), expected)


@pytest.mark.parametrize("cuts", [(20, 0.9, 0.0), (0, 0.5, 0.01)], ids=str)
@pytest.mark.parametrize("quantised", [False, True])
def test_only_wanted_rows_of_the_canvas_are_written_each_with_its_bias(
    cuts, quantised, monkeypatch
):
    monkeypatch.setattr("engine.tail.truncated_draw.TRUNCATED_ROWS", 4)
    hidden, embedding, temperatures = case(320)
    if quantised:
        embedding = quantize(embedding, "int8", torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    biases = [
        Bias(slice(0, 6), torch.randn(320, generator=generator) * 5, torch.linspace(0.5, 2, 320)),
        Bias(slice(4, 5), torch.full((320,), -1e9).index_fill_(0, torch.arange(9), 0.0)),
    ]
    inputs, uniforms = (hidden, embedding, temperatures), torch.rand(ROWS, generator=generator)
    wanted, rows = torch.arange(ROWS) % 4 != 1, slice(2, 7)
    top_k, top_p, min_p = cuts
    options = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "biases": biases}
    tokens = drawn(inputs, uniforms, wanted, rows, **options)
    written = [row for row in range(2, 7) if wanted[row]]
    expected = truncated_draw(*inputs, uniforms, torch.tensor(written), softcap=SOFTCAP, **options)
    assert tokens[written].tolist() == expected.tolist()
    assert (tokens >= 0).sum() == len(written)


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")  # of the interpreter's numpy
@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_gets_a_token_all_the_same(value):
    inputs = case(160)
    inputs[0][4, 7] = value
    every = torch.ones(ROWS, dtype=torch.bool)
    tokens = drawn(inputs, torch.rand(ROWS), every, slice(0, ROWS), top_k=5, top_p=0.9)
    assert ((tokens >= 0) & (tokens < 160)).all()
