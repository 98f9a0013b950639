import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from engine.sizing.chunks import VOCAB_CHUNK
from engine.tail.truncated_draw import least_kept, truncated_draw
from engine.tail.vocab_tail import Bias

SOFTCAP = 30.0
CUTS = [
    (1, 1.0, 0.0),
    (2, 1.0, 0.0),
    (7, 1.0, 0.0),
    (0, 0.05, 0.0),
    (0, 0.6, 0.0),
    (0, 0.999, 0.0),
    (7, 0.5, 0.0),
    (10**6, 0.9, 0.0),
    (0, 1.0, 0.001),
    (0, 1.0, 0.3),
    (0, 1.0, 1.0),
    (7, 1.0, 0.3),
    (0, 0.6, 0.1),
    (7, 0.9, 0.05),
]


def kept_by_hand(probs, top_k, top_p, min_p=0.0):
    """Returns the tokens of one row that the cuts keep, computed one by one."""
    order = probs.argsort(descending=True).tolist()
    order = order[: top_k or len(order)]
    mass, kept, spent = float(probs[order].double().sum()), set(), 0.0
    for token in order:
        if spent < top_p * mass:
            kept.add(token)
        spent += float(probs[token])
    least = min_p * float(probs.max())
    return {token for token in kept if float(probs[token]) >= least}


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), CUTS)
@pytest.mark.parametrize("vocab", [160, 3000])  # flat rows of 3000 have a wide nucleus
def test_cuts_keep_the_best_k_and_the_fewest_of_them_with_mass_p_and_the_likely_ones(
    vocab, top_k, top_p, min_p
):
    generator = torch.Generator().manual_seed(vocab)
    flatness = torch.tensor([[5.0], [1.0], [0.1]])
    probs = (torch.randn(3, vocab, generator=generator) * flatness).softmax(-1)
    kept = probs >= least_kept(probs, top_k=top_k, top_p=top_p, min_p=min_p)
    for row in range(3):
        by_hand = kept_by_hand(probs[row], top_k, top_p, min_p)
        assert set(kept[row].nonzero().flatten().tolist()) == by_hand


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), CUTS)
def test_cuts_keep_the_same_tokens_as_in_transformers(top_k, top_p, min_p):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(5, 160, generator=generator) * torch.linspace(0.1, 6, 5)[:, None]
    processed = logits
    if top_k:
        processed = TopKLogitsWarper(min(top_k, 160))(None, processed)
    if top_p < 1:
        processed = TopPLogitsWarper(top_p)(None, processed)
    if min_p:
        processed = MinPLogitsWarper(min_p)(None, processed)
    probs = logits.softmax(-1)
    kept = probs >= least_kept(probs, top_k=top_k, top_p=top_p, min_p=min_p)
    assert torch.equal(kept, processed > -torch.inf)


def test_tokens_as_likely_as_the_last_kept_one_are_kept_too():
    probs = torch.tensor([[0.4, 0.2, 0.2, 0.1, 0.1]])
    for cut in ({"top_k": 2, "top_p": 1.0}, {"top_k": 0, "top_p": 0.55}):
        assert float(least_kept(probs, **cut, min_p=0.0)) == pytest.approx(0.2)


def test_the_likeliest_token_is_kept_however_small_top_p_is():
    probs = torch.tensor([[0.1, 0.2, 0.2, 0.3, 0.2]])
    assert least_kept(probs, top_k=1, top_p=5e-324, min_p=0.0) == probs[0, 3]


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(5, 1.0, 0.0), (0, 0.7, 0.0), (9, 0.8, 0.0), (0, 1.0, 0.1), (9, 0.8, 0.2)],
)
def test_draws_follow_the_kept_part_of_the_biased_distribution(top_k, top_p, min_p):
    vocab, draws = 2 * VOCAB_CHUNK, 300
    generator = torch.Generator().manual_seed(1)
    rows = torch.arange(20).expand(draws, 20).flatten()  # more rows than are drawn at a time
    hidden = torch.randn(20, 16, generator=generator)[rows]
    embedding = torch.randn(vocab, 16, generator=generator)
    temperatures = torch.linspace(0.4, 1.6, 20)[rows]
    values = torch.zeros(vocab)
    values[:50] = 6.0
    drawn = truncated_draw(
        hidden,
        embedding,
        temperatures,
        torch.rand(len(rows), generator=generator),
        torch.arange(len(rows)),
        softcap=SOFTCAP,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        biases=[Bias(slice(0, len(rows)), values)],
    ).view(draws, 20)
    chi_square, freedom = 0.0, 0
    for row in range(20):
        logits = SOFTCAP * (hidden[row].double() @ embedding.double().T / SOFTCAP).tanh() + values
        probs = (logits / temperatures[row].double()).softmax(-1)
        kept = sorted(kept_by_hand(probs, top_k, top_p, min_p))
        counts = torch.bincount(drawn[:, row], minlength=vocab)
        assert counts[kept].sum() == draws
        expected = probs[kept] / probs[kept].sum() * draws
        often = expected >= 5
        chi_square += float(((counts[kept] - expected) ** 2 / expected)[often].sum())
        freedom += max(int(often.sum()) - 1, 0)
    assert freedom > 20
    # Normal approximation of the 0.1 % point of a chi-square distribution (Wilson and Hilferty).
    bound = freedom * (1 - 2 / (9 * freedom) + 3.1 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert chi_square < bound


def test_a_draw_depends_neither_on_the_other_rows_nor_on_their_biases():
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(40, 16, generator=generator)
    inputs = (
        hidden,
        torch.randn(320, 16, generator=generator),
        torch.ones(40),
        torch.rand(40, generator=generator),
    )
    cut = {"softcap": SOFTCAP, "top_k": 20, "top_p": 0.9}
    every = truncated_draw(*inputs, torch.arange(40), **cut)
    picked = torch.tensor([3, 17, 39])
    forced = torch.zeros(320)
    forced[5] = 1000.0
    biases = [Bias(slice(10, 18), forced)]
    expected = every[picked].tolist()
    assert truncated_draw(*inputs, picked, **cut).tolist() == expected
    expected[1] = 5
    assert truncated_draw(*inputs, picked, biases=biases, **cut).tolist() == expected
