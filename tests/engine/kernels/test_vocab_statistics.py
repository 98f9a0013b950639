import pytest
import torch

from engine.kernels.vocab_statistics import plain_vocab_statistics, vocab_statistics

ROWS = 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocab", "group"), [(160, 32), (1280, 256), (4352, 256)])
@pytest.mark.parametrize("shift", ["one", "peak"])
def test_the_kernel_has_the_results_of_plain_operations(vocab, group, dtype, shift):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(ROWS, vocab, generator=generator) * 12).to(dtype)
    logits[0] = 0.0  # every token equally likely
    logits[1, 5:9] = 60.0  # several argmaxes, far above the softcap
    sharpness = 30.0 / torch.linspace(0.4, 1.6, ROWS)
    shifts = {"one": torch.ones(ROWS), "peak": (logits.float() / 30).tanh().amax(1)}
    ours, plain = logits.clone(), logits.clone()
    arguments = {"softcap": 30.0, "group": group}
    actual = vocab_statistics(ours, sharpness, shifts[shift], **arguments)
    expected = plain_vocab_statistics(plain, sharpness, shifts[shift], **arguments)
    # At the lowest temperature, the exponent's error is 75 times the error of tanh, which is 1e-7.
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=1e-36)
    torch.testing.assert_close(actual.mass, expected.mass, rtol=1e-4, atol=1e-36)
    # The energy's terms are zero at the peak, so its error is small relative to the mass.
    error = (actual.energy - expected.energy).abs()
    assert (error <= 1e-4 * expected.energy.abs() + 1e-5 * expected.mass + 1e-36).all()
    assert torch.equal(actual.best, expected.best)
    assert torch.equal(actual.best_index, expected.best_index)
