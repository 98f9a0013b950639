import pytest
import torch

from engine.denoise.noise import block_noise, philox

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # The known answers published with Random123 (kat_vectors, philox4x32 10).
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_returns_the_published_known_answers(counter, key, expected):
    words = philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in words) == expected


def noise(seed, block, stream=0, steps=48, canvas_length=256, vocab_size=262144):
    return block_noise(
        seed,
        block,
        steps=steps,
        canvas_length=canvas_length,
        vocab_size=vocab_size,
        device=CPU,
        stream=stream,
    )


def test_numbers_do_not_depend_on_the_number_of_steps_and_positions():
    whole, part = noise(7, 3), noise(7, 3, steps=5, canvas_length=10)
    assert torch.equal(whole.canvases[:6, :10], part.canvases)
    assert torch.equal(whole.uniforms[:5, :10], part.uniforms)


@pytest.mark.parametrize("other", [(8, 3), (7, 4), (7 + 2**32, 3), (7, 3, 1), (7, 3, 2**32 - 1)])
def test_another_seed_block_or_stream_has_other_numbers(other):
    equal = (noise(7, 3).uniforms == noise(*other).uniforms).float().mean()
    assert equal < 0.001


def test_canvases_are_uniform_over_the_vocabulary():
    tokens = noise(1, 0, steps=999, canvas_length=1000, vocab_size=10).canvases
    counts = torch.bincount(tokens.flatten(), minlength=10).double()
    chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert counts.numel() == 10
    assert chi_square < 27.9  # 0.1 % of a chi-square with 9 degrees of freedom


def test_uniforms_fill_the_unit_interval_and_never_reach_one():
    uniforms = noise(2**64 - 1, 0, steps=1000, canvas_length=1000).uniforms
    counts = torch.histc(uniforms, bins=100, min=0.0, max=1.0).double()
    chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert float(uniforms.max()) < 1.0
    assert chi_square < 148.3  # 0.1 % of a chi-square with 99 degrees of freedom
