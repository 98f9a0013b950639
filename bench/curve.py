"""Accuracy against steps: the points of a curve, and the area under it as d3LLM defines it.

AUP, "accuracy under parallelism" (Qian and others, "d3LLM: Ultra-Fast Diffusion LLM using
Pseudo-Trajectory Distillation", arXiv 2601.07568), weighs the tokens that a step yields by how
little accuracy they cost. It depends on no hardware.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

PENALTY = 3.0  # d3LLM's alpha: the weight of a lost share of the accuracy, as a power of e
MOST_LOSS = 5.0  # percentage points below the slowest point; points with more loss do not count


@dataclass(frozen=True)
class Point:
    """The results of one setting."""

    limit: int  # the most denoising steps a block
    accuracy: float  # a share
    steps_a_block: float
    tokens_a_step: float


def area(points: list[Point], best: float) -> float:
    """Returns the AUP of a curve. `best` is the highest accuracy of all curves that are compared.

    Accuracies are in percent, as in d3LLM: an accuracy of 100 % at one token a step is worth 100.
    """
    by_parallelism: dict[float, float] = {}
    for point in points:
        accuracy = 100 * point.accuracy
        known = by_parallelism.get(point.tokens_a_step, 0.0)
        by_parallelism[point.tokens_a_step] = max(accuracy, known)
    (first, slowest), *faster = sorted(by_parallelism.items())
    counted = [(first, slowest)]
    counted += [
        (tokens, accuracy) for tokens, accuracy in faster if accuracy >= slowest - MOST_LOSS
    ]
    total = first * slowest
    for (before, low), (tokens, high) in pairwise(counted):
        weighted = high * _weight(high, best) + low * _weight(low, best)
        total += (tokens - before) * weighted / 2
    return total


def _weight(accuracy: float, best: float) -> float:
    """Returns how much a point counts whose accuracy in percent is below the best one, a share."""
    return min(math.exp(-PENALTY * (1 - accuracy / (100 * best))), 1.0) if best else 0.0
