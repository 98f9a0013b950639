import pytest
import torch

from engine.sizing.chunks import VOCAB_CHUNK
from engine.tail.logprobs import logprobs

ROWS, HIDDEN, SOFTCAP = 12, 16, 30.0


@pytest.mark.parametrize("best", [0, 1, 20])
@pytest.mark.parametrize("vocab", [15, 301, 2 * VOCAB_CHUNK, 2 * VOCAB_CHUNK + 3])
def test_they_are_the_log_softmax_of_the_softcapped_logits(vocab, best):
    generator = torch.Generator().manual_seed(vocab)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator) * torch.linspace(0.1, 9, ROWS)[:, None]
    embedding = torch.randn(vocab, HIDDEN, generator=generator)
    tokens = torch.randint(0, vocab, (ROWS,), generator=generator)
    dense = SOFTCAP * (hidden.double() @ embedding.double().T / SOFTCAP).tanh()
    dense = dense.log_softmax(-1)
    found = logprobs(hidden, embedding, tokens, softcap=SOFTCAP, best=best)
    expected = dense.topk(min(best, vocab))
    torch.testing.assert_close(
        found.chosen.double(), dense.gather(1, tokens[:, None]).squeeze(1), atol=2e-5, rtol=0
    )
    torch.testing.assert_close(found.best.double(), expected.values, atol=2e-5, rtol=0)
    assert torch.equal(found.best_tokens, expected.indices)


def test_on_the_wire_each_token_has_its_own_and_the_best_ones():
    hidden, embedding = torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    found = logprobs(hidden, embedding, torch.tensor([2, 2]), softcap=1e4, best=2).messages()
    total = torch.tensor([0.0, 1.0, 2.0]).logsumexp(0).item()
    assert [each.token for each in found] == [2, 2]
    assert found[0].logprob == pytest.approx(2 - total, abs=1e-5)
    assert [token for token, _ in found[0].top] == [2, 1]
    assert [token for token, _ in found[1].top] == [0, 1]
    assert found[1].top[0][1] == pytest.approx(2 - total, abs=1e-5)
    assert found[1].logprob == pytest.approx(-total, abs=1e-5)
