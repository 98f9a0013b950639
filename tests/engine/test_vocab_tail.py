import torch

from engine.model.vocab_tail import inverse_cdf, vocab_tail

CANVAS, HIDDEN, VOCAB = 6, 16, 300


def tail(temperature=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(CANVAS, HIDDEN, generator=generator) * 3
    embedding = torch.randn(VOCAB, HIDDEN, generator=generator)
    uniforms = torch.rand(CANVAS, generator=generator)
    result = vocab_tail(
        hidden,
        embedding,
        uniforms,
        softcap=30.0,
        temperature=temperature,
        embedding_scale=4.0,
    )
    logits = 30 * (hidden.double() @ embedding.double().T / 30).tanh() / temperature
    return result, logits.softmax(-1), embedding, uniforms


def test_entropy_agrees_with_float64():
    result, probs, *_ = tail()
    expected = torch.special.entr(probs).sum(-1)
    torch.testing.assert_close(result.entropy.double(), expected, atol=5e-5, rtol=0)


def test_argmax_is_the_most_likely_token():
    result, probs, *_ = tail()
    assert torch.equal(result.argmax, probs.argmax(-1))


def test_soft_embedding_is_the_scaled_mean_embedding():
    result, probs, embedding, _ = tail()
    expected = 4.0 * probs @ embedding.double()
    torch.testing.assert_close(result.soft_embeddings.double(), expected, atol=1e-4, rtol=0)


def test_sample_is_where_the_running_sum_passes_the_uniform_number():
    result, probs, _, uniforms = tail()
    expected = [
        int((row.cumsum(0) <= u).sum()) for row, u in zip(probs, uniforms.double(), strict=True)
    ]
    assert result.sample.tolist() == expected


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


def test_the_largest_uniform_number_draws_a_token_that_is_possible():
    probs = torch.tensor([[0.1] * 10 + [0.0]])  # whose float32 sum is not exactly one
    assert inverse_cdf(probs, torch.tensor([1 - 2.0**-24])).item() == 9
