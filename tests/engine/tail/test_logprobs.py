import pytest
import torch

from engine.sizing.chunks import VOCAB_CHUNK
from engine.tail.logprobs import logprobs

ROWS, HIDDEN, SOFTCAP = 12, 16, 30.0


@pytest.mark.parametrize("best", [0, 1, 20])
@pytest.mark.parametrize("vocab", [15, 301, 2 * VOCAB_CHUNK, 2 * VOCAB_CHUNK + 3])
def test_logprobs_are_the_log_softmax_of_the_softcapped_logits(vocab, best):
    generator = torch.Generator().manual_seed(vocab)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator) * torch.linspace(0.1, 9, ROWS)[:, None]
    embedding = torch.randn(vocab, HIDDEN, generator=generator)
    tokens = torch.randint(0, vocab, (ROWS,), generator=generator)
    dense = SOFTCAP * (hidden.double() @ embedding.double().T / SOFTCAP).tanh()
    dense = dense.log_softmax(-1)
    result = logprobs(hidden, embedding, tokens, softcap=SOFTCAP, best=best)
    expected = dense.topk(min(best, vocab))
    torch.testing.assert_close(
        result.chosen.double(), dense.gather(1, tokens[:, None]).squeeze(1), atol=2e-5, rtol=0
    )
    torch.testing.assert_close(result.best.double(), expected.values, atol=2e-5, rtol=0)
    assert torch.equal(result.best_tokens, expected.indices)


def test_a_message_holds_the_logprobs_of_its_token_and_of_the_best_ones():
    hidden, embedding = torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    messages = logprobs(hidden, embedding, torch.tensor([2, 2]), softcap=1e4, best=2).messages()
    total = torch.tensor([0.0, 1.0, 2.0]).logsumexp(0).item()
    assert [each.token for each in messages] == [2, 2]
    assert messages[0].logprob == pytest.approx(2 - total, abs=1e-5)
    assert [token for token, _ in messages[0].top] == [2, 1]
    assert [token for token, _ in messages[1].top] == [0, 1]
    assert messages[1].top[0][1] == pytest.approx(2 - total, abs=1e-5)
    assert messages[1].logprob == pytest.approx(-total, abs=1e-5)
