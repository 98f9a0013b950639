import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from engine.model.embedding import look_up
from engine.model.experts import group_ends
from engine.sizing.chunks import VOCAB_CHUNK
from engine.tail.logprobs import logprobs
from engine.tail.truncated_draw import truncated_draw
from engine.tail.vocab_tail import (
    Bias,
    draw,
    gathered_products,
    grouped_products,
    inverse_cdf,
    plain_vocab_tail,
    vocab_tail,
)
from engine.weights.quantization import quantize

ROWS, HIDDEN = 24, 16
SOFTCAP = 30.0
# One group, several groups, several chunks, a shorter last chunk, no factor of two.
VOCABS = [160, 1280, 2 * VOCAB_CHUNK, 2 * VOCAB_CHUNK + 256, 301]
EVERY = torch.ones(ROWS, dtype=torch.bool)


class Case:
    """The same distributions, computed in both ways. Each row has its own temperature."""

    def __init__(self, vocab, temperature=0.7, sharp=3.0):
        generator = torch.Generator().manual_seed(vocab)
        self.hidden = torch.randn(ROWS, HIDDEN, generator=generator) * sharp
        self.embedding = torch.randn(vocab, HIDDEN, generator=generator)
        self.uniforms = torch.rand(ROWS, generator=generator)
        self.temperatures = temperature * torch.linspace(0.5, 1.5, ROWS)
        inputs = (self.hidden, self.embedding, self.temperatures)
        scale = {"softcap": SOFTCAP, "embedding_scale": 4.0}
        self.result = vocab_tail(*inputs, **scale)
        self.argmax, _, self.soft, self.sample = plain_vocab_tail(*inputs, self.uniforms, **scale)
        logits = SOFTCAP * (self.hidden.double() @ self.embedding.double().T / SOFTCAP).tanh()
        self.probs = (logits / self.temperatures.double()[:, None]).softmax(-1)

    def draw(self, uniforms, wanted=EVERY):
        return draw(
            self.result,
            self.hidden,
            self.embedding,
            self.temperatures,
            uniforms,
            wanted,
            softcap=SOFTCAP,
        )


# Sharp and flat rows.
CASES = [(0.7, 3.0), (0.7, 0.01), (1.6, 1.0)]


@pytest.fixture(params=VOCABS)
def vocab(request):
    return request.param


@pytest.mark.parametrize(("temperature", "sharp"), CASES)
def test_entropy_is_within_5e_5_of_float64(vocab, temperature, sharp):
    case = Case(vocab, temperature, sharp)
    expected = torch.special.entr(case.probs).sum(-1)
    torch.testing.assert_close(case.result.entropy.double(), expected, atol=5e-5, rtol=0)
    assert (case.result.entropy >= 0).all()


@pytest.mark.parametrize(("temperature", "sharp"), CASES)
def test_argmax_equals_the_plain_one(vocab, temperature, sharp):
    case = Case(vocab, temperature, sharp)
    assert torch.equal(case.result.argmax, case.argmax)
    assert torch.equal(case.result.argmax, case.probs.argmax(-1))


@pytest.mark.parametrize(("temperature", "sharp"), CASES)
def test_soft_embedding_is_the_scaled_mean_embedding(vocab, temperature, sharp):
    case = Case(vocab, temperature, sharp)
    expected = 4.0 * case.probs @ case.embedding.double()
    torch.testing.assert_close(case.result.soft_embeddings.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("temperature", "sharp"), CASES)
def test_draws_equal_the_plain_ones_for_the_same_uniform_numbers(vocab, temperature, sharp):
    case = Case(vocab, temperature, sharp)
    assert torch.equal(case.draw(case.uniforms), case.sample)


def test_results_are_exact_where_a_constant_exponent_shift_would_underflow(vocab):
    case = Case(vocab, temperature=0.02, sharp=0.1)  # 30 / 0.01 is beyond exp's range in float32
    expected = torch.special.entr(case.probs).sum(-1)
    torch.testing.assert_close(case.result.entropy.double(), expected, atol=5e-5, rtol=0)
    assert torch.equal(case.result.argmax, case.probs.argmax(-1))
    assert torch.equal(case.draw(case.uniforms), case.sample)


def test_draws_of_wanted_rows_do_not_depend_on_which_others_are_wanted(vocab):
    case = Case(vocab)
    wanted = torch.arange(ROWS) % 3 == 0
    drawn = case.draw(case.uniforms, wanted)
    assert torch.equal(drawn[wanted], case.sample[wanted])


@pytest.mark.parametrize("banned", [-100.0, -1e9])
def test_a_bias_changes_the_distribution_of_its_own_rows_only(vocab, banned):
    plain = Case(vocab)
    values, others = torch.randn(2, vocab, generator=torch.Generator().manual_seed(1)) * 3
    values[: vocab // 2] = banned  # which includes whole chunks
    values[-1] = 25.0
    biases = [Bias(slice(4, 9), values), Bias(slice(8, 12), others)]
    logits = (
        plain.probs.log() * plain.temperatures.double()[:, None]
    )  # up to a constant in each row
    for bias in biases:
        logits[bias.rows] += bias.values
    probs = (logits / plain.temperatures.double()[:, None]).softmax(-1)
    inputs = (plain.hidden, plain.embedding, plain.temperatures)
    scale = {"softcap": SOFTCAP, "embedding_scale": 4.0}
    result = vocab_tail(*inputs, **scale, biases=biases)
    entropy = torch.special.entr(probs).sum(-1)
    torch.testing.assert_close(result.entropy.double(), entropy, atol=2e-4, rtol=0)
    assert torch.equal(result.argmax, probs.argmax(-1))
    soft = 4.0 * probs @ plain.embedding.double()
    torch.testing.assert_close(result.soft_embeddings.double(), soft, atol=1e-3, rtol=0)
    drawn = draw(result, *inputs, plain.uniforms, EVERY, softcap=SOFTCAP, biases=biases)
    assert torch.equal(drawn, inverse_cdf(probs, plain.uniforms))
    unbiased = torch.cat([torch.arange(4), torch.arange(12, ROWS)])
    for name in ("argmax", "entropy", "soft_embeddings", "group_mass"):
        assert torch.equal(getattr(result, name)[unbiased], getattr(plain.result, name)[unbiased])
    assert torch.equal(drawn[unbiased], plain.sample[unbiased])


@pytest.mark.parametrize("penalty", [1.7, 0.4, 1e4])
def test_factors_of_a_bias_are_transformers_repetition_penalty_and_come_before_its_values(
    vocab, penalty
):
    plain = Case(vocab)
    generator = torch.Generator().manual_seed(1)
    present = torch.randperm(vocab, generator=generator)[: vocab // 3]
    factors = torch.ones(vocab)
    factors[present] = penalty
    values, others = torch.randn(2, vocab, generator=generator) * 3
    biases = [Bias(slice(4, 9), values, factors), Bias(slice(8, 12), others)]
    logits = SOFTCAP * (plain.hidden.double() @ plain.embedding.double().T / SOFTCAP).tanh()
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    logits[4:9] = processor(present.expand(5, -1), logits[4:9])
    for bias in biases:
        logits[bias.rows] += bias.values
    probs = (logits / plain.temperatures.double()[:, None]).softmax(-1)
    inputs = (plain.hidden, plain.embedding, plain.temperatures)
    scale = {"softcap": SOFTCAP, "embedding_scale": 4.0}
    result = vocab_tail(*inputs, **scale, biases=biases)
    entropy = torch.special.entr(probs).sum(-1)
    torch.testing.assert_close(result.entropy.double(), entropy, atol=2e-4, rtol=0)
    assert torch.equal(result.argmax, probs.argmax(-1))
    soft = 4.0 * probs @ plain.embedding.double()
    torch.testing.assert_close(result.soft_embeddings.double(), soft, atol=1e-3, rtol=0)
    drawn = draw(result, *inputs, plain.uniforms, EVERY, softcap=SOFTCAP, biases=biases)
    assert torch.equal(drawn, inverse_cdf(probs, plain.uniforms))
    every_row = torch.arange(ROWS)
    cut = {"softcap": SOFTCAP, "top_k": vocab, "top_p": 1.0, "biases": biases}
    drawn = truncated_draw(*inputs, plain.uniforms, every_row, **cut)
    assert torch.equal(drawn, inverse_cdf(probs, plain.uniforms))


def test_draws_follow_the_distribution():
    case, rounds = Case(2 * VOCAB_CHUNK, sharp=0.6), 400
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([case.draw(torch.rand(ROWS, generator=generator)) for _ in range(rounds)])
    # All rows' tokens, sorted by rank into sixteen bins with equal expected counts.
    ranks = case.probs.argsort(-1, descending=True)
    below = case.probs.gather(1, ranks).cumsum(-1)
    middle = below - case.probs.gather(1, ranks) / 2
    bins = torch.zeros_like(ranks).scatter_(1, ranks, (middle * 16).long().clamp(max=15))
    expected = torch.zeros(ROWS, 16).double().scatter_add_(1, bins, case.probs).sum(0) * rounds
    counts = torch.bincount(bins.gather(1, drawn.T).flatten(), minlength=16).double()
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 37.7  # 0.1 % of a chi-square with 15 degrees of freedom


def test_the_smallest_and_the_largest_uniform_number_draw_possible_tokens(vocab):
    case = Case(vocab, temperature=0.02)  # most tokens have a probability of exactly zero
    for uniform in (0.0, 1 - 2.0**-24):
        tokens = case.draw(torch.full((ROWS,), uniform))
        assert (case.probs.gather(1, tokens[:, None]) > 0).all()


def test_samples_follow_the_distribution():
    draws = 20_000
    probs = torch.tensor([0.5, 0.25, 0.0, 0.15, 0.1])
    uniforms = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(inverse_cdf(probs.expand(draws, 5), uniforms), minlength=5).double()
    expected = probs.double() * draws
    assert counts[2] == 0
    possible = expected > 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 16.3  # 0.1 % of a chi-square with 3 degrees of freedom


def test_the_largest_uniform_number_draws_a_possible_token():
    probs = torch.tensor([[0.1] * 10 + [0.0]])  # the float32 sum is not exactly 1
    assert inverse_cdf(probs, torch.tensor([1 - 2.0**-24])).item() == 9


def test_grouped_and_gathered_products_are_equal():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(150, HIDDEN, generator=generator)  # more rows than are gathered at a time
    embedding = torch.randn(9, 32, HIDDEN, generator=generator)
    groups = torch.randint(0, 9, (150,), generator=generator)
    expected = torch.einsum("rd,rsd->rs", hidden, embedding[groups])
    for products in (grouped_products, gathered_products):
        torch.testing.assert_close(products(hidden, embedding, groups), expected)


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
@pytest.mark.parametrize("vocab", VOCABS)
def test_a_quantised_embedding_works_like_its_dequantised_values(vocab, scheme):
    case = Case(vocab)
    quantised = quantize(case.embedding, scheme, torch.device("cpu"))
    case.embedding = quantised.dequantize(torch.float32)
    inputs = (case.hidden, case.temperatures, case.uniforms)
    results, expected = (steps(*inputs, each) for each in (quantised, case.embedding))
    for name, value in expected.items():
        torch.testing.assert_close(results[name], value, rtol=1e-4, atol=1e-4, msg=name)


def steps(hidden, temperatures, uniforms, embedding):
    """Returns all results of a step that depend on the embedding."""
    scale = {"softcap": SOFTCAP, "embedding_scale": 4.0}
    tail = vocab_tail(hidden, embedding, temperatures, **scale)
    rows = torch.arange(ROWS)
    inputs = (hidden, embedding, temperatures, uniforms)
    of_logprobs = logprobs(hidden, embedding, tail.argmax, softcap=SOFTCAP, best=3)
    return {
        "argmax": tail.argmax,
        "entropy": tail.entropy,
        "soft": tail.soft_embeddings,
        "mass": tail.group_mass,
        "draw": draw(tail, *inputs, EVERY, softcap=SOFTCAP),
        "truncated": truncated_draw(*inputs, rows, softcap=SOFTCAP, top_k=9, top_p=0.9),
        "chosen": of_logprobs.chosen,
        "best": of_logprobs.best,
        "looked up": look_up(embedding, tail.argmax, hidden.dtype),
    }


def test_group_ends_include_empty_groups():
    assert group_ends(torch.tensor([0, 0, 2, 2, 2, 4]), 6).tolist() == [2, 2, 5, 5, 6, 6]
