"""The best token of each class at each position, for a constraint on the answer.

A constraint tells tokens apart by classes only, so the best token of a class stands for all of it.
The vocabulary is processed in chunks, as in `vocab_tail`, so that the [R, V] logits never exist. On
a CPU a compiled loop reads each chunk once. On a GPU PyTorch's operations do the same, in less
memory than the tail's logits take there, which are gone by then.

Letters: R canvas positions (rows), D hidden size, V vocabulary, C classes, P tokens of a chunk, G
groups of tokens of one class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.constraint.compiled import compiled
from engine.model.embedding import Embedding, token_range
from engine.sizing.chunks import VOCAB_CHUNK
from engine.tail.vocab_tail import Bias, capped

_GPU_CHUNK = 8 * VOCAB_CHUNK  # on a GPU the launches for smaller ones cost more than the reads
_GROUP = 16  # tokens; a class' last group in a chunk is filled up with its first token
_TOKEN_BITS = 31  # of any token id


@dataclass(frozen=True)
class ClassBest:
    """The best token of each class at each position, and its regret. On the host."""

    regrets: NDArray[np.float32]  # [R, C] in nats: the row's largest logit minus the token's
    tokens: NDArray[np.int64]  # [R, C]; meaningless where the regret is infinite, as for class 0


class TokenClasses:
    """The classes of a vocabulary's tokens, in the form that `class_best` needs on a device."""

    def __init__(self, token_class: NDArray[np.int32], classes: int, device: torch.device) -> None:
        """`token_class` is [V]. Tokens of class 0 are never allowed."""
        self.token_class, self.classes = token_class, classes
        self.groups = [] if device.type == "cpu" else [*_groups(token_class, device)]


def prepare_class_best(device: torch.device) -> None:
    """Have the loops of `class_best` compiled for a device, unless they are."""
    if device.type == "cpu":
        logits, kinds = np.zeros((1, 1), np.float32), np.zeros(1, np.int32)
        best, tokens = np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int64)
        _take_best(logits, kinds, 0, best, tokens, np.zeros(1, np.float32))


def class_best(
    hidden: Tensor,
    embedding: Embedding,
    classes: TokenClasses,
    *,
    softcap: float,
    biases: Sequence[Bias] = (),
) -> ClassBest:
    """Returns the best token of each class in each row. Waits for the device.

    hidden is [R, D] in the weights' dtype, embedding [V, D]. The logits are softcapped and biased,
    as in `vocab_tail`. Of equally good tokens the first is taken.
    """
    if classes.groups:
        return grouped_class_best(hidden, embedding, classes, softcap=softcap, biases=biases)
    shape = (hidden.shape[0], classes.classes)
    best, tokens = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int64)
    peak = np.full(shape[0], -np.inf, np.float32)
    for start in range(0, len(classes.token_class), VOCAB_CHUNK):
        span = slice(start, start + VOCAB_CHUNK)
        logits = _biased_logits(hidden, embedding, span, softcap, biases)
        _take_best(logits.numpy(), classes.token_class[span], start, best, tokens, peak)
    return ClassBest((peak[:, None] - best) * np.float32(softcap), tokens)


def best_allowed(
    hidden: Tensor,
    embedding: Embedding,
    allowed: NDArray[np.bool_],
    *,
    softcap: float,
    biases: Sequence[Bias] = (),
) -> int:
    """Returns the best of the allowed [V] tokens in one row. Waits for the device.

    hidden is [1, D], and the other arguments are those of `class_best`.
    """
    mask, best, token = torch.from_numpy(allowed).to(hidden.device), -np.inf, 0
    size = VOCAB_CHUNK if hidden.device.type == "cpu" else _GPU_CHUNK
    for start in range(0, len(allowed), size):
        span = slice(start, start + size)
        logits = _biased_logits(hidden, embedding, span, softcap, biases)[0]
        largest, index = logits.where(mask[span], -torch.inf).max(-1)
        if float(largest) > best:
            best, token = float(largest), start + int(index)
    return token


def grouped_class_best(
    hidden: Tensor,
    embedding: Embedding,
    classes: TokenClasses,
    *,
    softcap: float,
    biases: Sequence[Bias] = (),
) -> ClassBest:
    """Returns the same as `class_best`, by PyTorch's operations.

    The logits are sorted into groups of one class each. The best of each group competes with the
    others of its class as one number of 64 bits, which has the logit's bits in front of the
    token's.
    """
    rows, device = hidden.shape[0], hidden.device
    peak = torch.full((rows,), -torch.inf, device=device)
    nothing = torch.iinfo(torch.int64).min
    best = torch.full((rows, classes.classes), nothing, dtype=torch.int64, device=device)
    for group in classes.groups:
        logits = _biased_logits(hidden, embedding, group.span, softcap, biases)  # [R, P]
        peak = torch.maximum(peak, logits.amax(-1))
        largest, index = logits[:, group.tokens].max(-1)  # [R, G]
        tokens = group.tokens.expand(rows, -1, -1).gather(2, index[..., None]).squeeze(2)
        # Equal logits are ordered against the tokens, so that the first one is the largest.
        order = 2**_TOKEN_BITS - 1 - (group.span.start + tokens)
        keys = (_in_order(largest).long() << _TOKEN_BITS) + order
        best.scatter_reduce_(1, group.classes.expand(rows, -1), keys, "amax")
    found = _from_order((best >> _TOKEN_BITS).int()).where(best != nothing, -torch.inf)
    tokens = 2**_TOKEN_BITS - 1 - (best & (2**_TOKEN_BITS - 1))
    return ClassBest(((peak[:, None] - found) * softcap).cpu().numpy(), tokens.cpu().numpy())


@dataclass(frozen=True)
class _Groups:
    """The allowed tokens of a chunk, in groups of one class each."""

    tokens: Tensor  # [G, _GROUP] int64, relative to the chunk's first token
    classes: Tensor  # [G] int64
    span: slice  # the chunk's part of the vocabulary


def _groups(token_class: NDArray[np.int32], device: torch.device) -> Iterator[_Groups]:
    for start in range(0, len(token_class), _GPU_CHUNK):
        part = token_class[start : start + _GPU_CHUNK]
        order = np.argsort(part, kind="stable")
        order = order[np.searchsorted(part[order], 1) :]
        kinds, firsts, sizes = np.unique(part[order], return_index=True, return_counts=True)
        counts = -(-sizes // _GROUP)  # of each class' groups
        tokens = np.repeat(order[firsts], counts * _GROUP)
        # The first slots of a class have its tokens. Those behind them keep its first one.
        shifts = (counts * _GROUP).cumsum() - counts * _GROUP - firsts
        tokens[np.arange(len(order)) + np.repeat(shifts, sizes)] = order
        yield _Groups(
            torch.from_numpy(tokens.reshape(-1, _GROUP)).to(device),
            torch.from_numpy(np.repeat(kinds, counts).astype(np.int64)).to(device),
            slice(start, start + len(part)),
        )


def _biased_logits(
    hidden: Tensor, embedding: Embedding, span: slice, softcap: float, biases: Sequence[Bias]
) -> Tensor:
    """Returns the logits of a part of the vocabulary, divided by the softcap: [R, P] float32."""
    logits = capped(hidden, token_range(embedding, span), softcap)
    for bias in biases:
        bias.apply(logits[bias.rows], span, softcap)
    return logits


@compiled
def _take_best(
    logits: NDArray[np.float32],
    token_class: NDArray[np.int32],
    start: int,
    best: NDArray[np.float32],
    tokens: NDArray[np.int64],
    peak: NDArray[np.float32],
) -> None:
    """Update `best` and `tokens` [R, C] and `peak` [R] by the logits [R, P] of a chunk.

    `start` is the chunk's first token.
    """
    for row in range(logits.shape[0]):
        for i in range(logits.shape[1]):
            logit, kind = logits[row, i], token_class[i]
            if logit > peak[row]:
                peak[row] = logit
            if kind > 0 and logit > best[row, kind]:
                best[row, kind] = logit
                tokens[row, kind] = start + i


def _in_order(values: Tensor) -> Tensor:
    """Returns int32 numbers that are in the order of these float32 numbers."""
    bits = values.contiguous().view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _from_order(bits: Tensor) -> Tensor:
    """Returns the float32 numbers that `_in_order` was given."""
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
