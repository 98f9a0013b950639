"""A conversation of ten turns: the tokens each turn encodes and its time to first block."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

from bench.compare import Row, Show, silent
from bench.random_model import Shape, write_random_model
from bench.sides import random_prompt
from engine.config import EngineConfig
from engine.loading import build_denoiser
from engine.messages import Block, GenerateRequest, Sampling
from engine.worker import Worker

COLUMNS = [
    "encoded_kept",
    "encoded_not_kept",
    "first_block_kept_ms",
    "first_block_not_kept_ms",
    "ratio",
]
TURNS, TURN_TOKENS = 10, 300
SHAPE = Shape(
    layers="sssssf" * 2,
    hidden=256,
    mlp=512,
    head=32,
    full_head=64,
    window=512,
    canvas=64,
    vocab=8192,
    positions=8192,
    steps=4,  # random weights are never confident, so every block has all steps
)


def rows(rounds: int, show: Show = silent) -> Iterator[Row]:
    show("making the model")
    with tempfile.TemporaryDirectory() as folder:
        path = str(write_random_model(Path(folder), SHAPE))
        sides = {
            kept: build_denoiser(
                EngineConfig(model=path, device="cpu", threads=1, prefix_cache_mib=2048 * kept)
            )
            for kept in (True, False)
        }
    config = EngineConfig()
    workers = {kept: Worker(denoiser, config) for kept, denoiser in sides.items()}
    text = random_prompt(SHAPE.vocab, TURNS * TURN_TOKENS)
    times: dict[tuple[int, bool], list[float]] = {}
    encoded: dict[tuple[int, bool], int] = {}
    for number in range(1, rounds + 1):
        sides[True].forget_prefixes()
        for turn in range(1, TURNS + 1):
            show(f"round {number} of {rounds}, turn {turn} of {TURNS}")
            prompt = text[: turn * TURN_TOKENS]
            for kept, worker in workers.items():
                started = perf_counter()
                request = GenerateRequest("bench", prompt, SHAPE.canvas, Sampling(seed=turn))
                (block, *_) = worker.generate(request)
                assert isinstance(block, Block)
                times.setdefault((turn, kept), []).append(perf_counter() - started)
                encoded[turn, kept] = len(prompt) - block.cached_tokens
    for turn in range(1, TURNS + 1):
        with_, without = times[turn, True], times[turn, False]
        pairs = [b / a for a, b in zip(with_, without, strict=True)]
        yield {
            "case": f"turn {turn}",
            "encoded_kept": encoded[turn, True],
            "encoded_not_kept": encoded[turn, False],
            "first_block_kept_ms": median(with_) * 1e3,
            "first_block_not_kept_ms": median(without) * 1e3,
            "ratio": median(without) / median(with_),
            "ratio_low": min(pairs),
            "ratio_high": max(pairs),
        }
