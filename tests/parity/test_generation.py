"""Compares whole answers with Transformers' `generate`, which has the same random numbers."""

import pytest
import torch

from engine.messages import GenerateRequest, Sampling

BLOCKS = 3
END_NOWHERE = -1  # without an end token, the reference would use those of its checkpoint


def request(prompt, length, seed):
    return GenerateRequest("r", prompt, length, Sampling(seed))


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 5])
def test_answers_of_three_blocks_are_token_identical(pair, same_noise, seed):
    same_noise(seed)
    prompt, length = (
        pair.prompt(seed=seed % 7),
        BLOCKS * pair.denoiser.model.dimensions.canvas_length,
    )
    generated = pair.reference.generate(
        torch.tensor([prompt]), max_new_tokens=length, eos_token_id=[END_NOWHERE]
    )
    blocks = pair.answer(
        GenerateRequest("r", prompt, length, Sampling(seed)), end_tokens=frozenset()
    )
    tokens = [token for block in blocks for token in block.tokens]
    assert tokens == generated.sequences[0, len(prompt) :].tolist()
    steps = sum(block.denoising_steps for block in blocks)
    pad = pair.reference.generation_config.pad_token_id  # the reference does not count it
    counted = sum(token != pad for token in tokens)
    assert counted / steps == pytest.approx(generated.tokens_per_forward.item())


def answer_with_an_end(pair, seed):
    """Returns a prompt, a length, a seed, and a token that the answer contains.

    The token is not the answer's first one: then Easel would make the block again, whereas the
    reference returns an empty answer.
    """
    length = BLOCKS * pair.denoiser.model.dimensions.canvas_length
    while True:
        prompt = pair.prompt(seed=seed)
        free = pair.answer(request(prompt, length, seed), end_tokens=frozenset())
        tokens = [token for block in free for token in block.tokens]
        # Preferably a token of the second block.
        middle = len(free[0].tokens) + 3
        for token in (*tokens[middle:], *tokens[:middle]):
            if token != tokens[0]:
                return prompt, length, seed, token
        seed += 2


@pytest.mark.parametrize("seed", [3, 4])
def test_an_answer_ends_with_the_same_end_token(pair, same_noise, seed):
    prompt, length, seed, end = answer_with_an_end(pair, seed)
    same_noise(seed)
    generated = pair.reference.generate(
        torch.tensor([prompt]), max_new_tokens=length, eos_token_id=[end]
    ).sequences[0, len(prompt) :]
    blocks = pair.answer(request(prompt, length, seed), end_tokens=frozenset([end]))
    tokens = [token for block in blocks for token in block.tokens]
    assert tokens[-1] == end
    assert tokens == generated.tolist()[: len(tokens)]
    padding = generated[len(tokens) :]
    assert (padding == pair.reference.generation_config.pad_token_id).all()
