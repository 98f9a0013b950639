"""The batches of the demo model's training: blocks of answers, and canvases of them with noise.

A pool of batches depends on the seed, its number and the tasks' weights only, so a training that
goes on makes the same batches as one that was never interrupted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from demo.network import CANVAS
from demo.tasks import training_example
from demo.tokenizer import END_OF_TURN, SPECIAL_TOKENS, encode_example

PAD = SPECIAL_TOKENS["<pad>"]
# Few, because in the same time many small steps came further than few large ones (README.md).
BLOCKS = 32
POOL_BATCHES = 32  # whose examples are sorted by length together, so that they need little padding
PURE_NOISE_SHARES = (0.15, 0.6)  # of the canvases with self-conditioning, and of those without
DRAFT_SHARE = 0.4  # of an edit's canvases that start from the given text
SLOTS_SHARE = 0.7  # of the canvases with slots, in which only these are noise
PADDING_WEIGHT = 0.1  # of the loss at positions behind the end token
SLOT_WEIGHT = 4.0  # of the loss at slots, which are few among tokens that are easy


@dataclass(frozen=True)
class Block:
    """A block of an answer, as tokens, behind everything before it.

    `draft` is the same block of the text that the answer starts from, if it starts from one.
    `slots` are the positions of a decision's labels, or of a lesson's many results.
    """

    task: str
    prefix: list[int]
    tokens: list[int]
    draft: list[int]
    slots: list[int]


@dataclass(frozen=True)
class Batch:
    """B blocks, the prefixes before them, and a canvas with noise of each.

    C, P and T vary from batch to batch.
    """

    tasks: list[str]  # [B] their names
    tokens: Tensor  # [B, T] prefixes and clean blocks, padded at the right
    lengths: Tensor  # [B] of the prefixes, at most P
    block: Tensor  # [B, C] clean blocks, padded behind the end token
    weights: Tensor  # [B, C] of the loss
    noisy: Tensor  # [B, C] the blocks with noise
    noisier: Tensor  # [B // 2, C] the first half of these with more noise, as in an earlier step


def pool_of_batches(
    tokenizer: PreTrainedTokenizerFast,
    vocab_size: int,
    seed: int,
    number: int,
    weights: dict[str, float],
    *,
    narrow_share: float,
) -> Iterator[Batch]:
    """Yield the random batches of one pool, for the tasks with these relative probabilities.

    `narrow_share` is the share of batches on canvases no wider than their blocks need.
    """
    random = Random(f"{seed}/{number}")
    generator = torch.Generator().manual_seed(random.getrandbits(63))
    pool = [_block(tokenizer, random, weights) for _ in range(POOL_BATCHES * BLOCKS)]
    pool.sort(key=lambda block: (_width(len(block.tokens)), len(block.prefix)))
    parts = [pool[i : i + BLOCKS] for i in range(0, len(pool), BLOCKS)]
    random.shuffle(parts)
    for part in parts:
        random.shuffle(part)
        narrow = random.random() < narrow_share
        width = max(_width(len(block.tokens)) for block in part) if narrow else CANVAS
        yield _batch(part, width, vocab_size, generator)


def _width(length: int) -> int:
    """Returns the width of the narrowest canvas for a block of this length."""
    return min(CANVAS, 16 * (length // 16 + 1))


def _block(tokenizer: PreTrainedTokenizerFast, random: Random, weights: dict[str, float]) -> Block:
    task, example = training_example(random, weights)
    prompt, answer = encode_example(tokenizer, example)
    start = random.randrange(0, len(answer), CANVAS)
    block = answer[start : start + CANVAS]
    draft: list[int] = []
    if example.draft is not None and not example.thinking:
        whole = tokenizer.encode(example.draft, add_special_tokens=False)
        draft = [*whole, END_OF_TURN][start : start + CANVAS]
    slots = []
    if example.slots_behind:
        token = tokenizer.convert_tokens_to_ids(example.slots_behind)
        slots = [i for i, before in enumerate(block[:-1], 1) if before == token]
    return Block(task, prompt + answer[:start], block, draft, slots)


def _batch(blocks: list[Block], width: int, vocab_size: int, generator: torch.Generator) -> Batch:
    tokens = _padded([each.prefix + each.tokens for each in blocks])
    block = _padded([each.tokens for each in blocks], width)
    weights = torch.full(block.shape, PADDING_WEIGHT)
    for row, each in enumerate(blocks):
        weights[row, : len(each.tokens)] = 1.0
        weights[row, each.slots] = SLOT_WEIGHT
    clean = block.clone()

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    def noise() -> Tensor:
        return torch.randint(0, vocab_size, clean.shape, generator=generator)

    level = uniform(len(clean), 1)
    # A canvas without self-conditioning is most often the first one of a block: all noise.
    half = len(clean) // 2
    pure = torch.where(torch.arange(len(clean)) < half, *PURE_NOISE_SHARES)
    level[uniform(len(clean)) < pure] = 1.0
    fixed = torch.zeros(clean.shape, dtype=torch.bool)
    for row, each in enumerate(blocks):
        if each.draft and uniform(1) < DRAFT_SHARE:
            clean[row] = _padded([each.draft[:width]], width)
            level[row] *= 0.5 * uniform(1)
        if each.slots and uniform(1) < SLOTS_SHARE:
            fixed[row] = True
            fixed[row, each.slots] = False
            level[row] = 1.0
    replaced = (uniform(*clean.shape) < level) & ~fixed
    more = (uniform(*clean.shape) < uniform(len(clean), 1)) & ~fixed
    return Batch(
        [each.task for each in blocks],
        tokens,
        torch.tensor([len(each.prefix) for each in blocks]),
        block,
        weights,
        torch.where(replaced, noise(), clean),
        # The sampler draws new noise in each step.
        torch.where(replaced | more, noise(), clean)[:half],
    )


def _padded(rows: list[list[int]], width: int = 0) -> Tensor:
    """Returns the rows in one tensor of this width, or of the longest row's if that is more."""
    width = max([width, *map(len, rows)])
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
