"""The cost of drafts in the worker: an answer with a draft after each step, and one without.

The messages are packed as for the front end. The times are the processor's, of the one thread that
the worker's loop has, because other work on the machine changes them least.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import process_time

from bench.compare import Row, Show, silent
from bench.random_model import Shape, write_random_model
from bench.sides import random_prompt
from engine.config import EngineConfig
from engine.loading import build_denoiser
from engine.messages import GenerateRequest, Sampling, encode
from engine.worker import Worker

COLUMNS = ["steps", "plain_ms", "drafts_ms", "ratio"]
STEPS = 16  # of each block
WIDE = Shape(layers="sssssf", hidden=256, mlp=512, canvas=256, vocab=16384)


def rows(rounds: int, show: Show = silent) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        models = {"demo": "demo", "256 positions": str(write_random_model(Path(folder), WIDE))}
        for case, model in models.items():
            config = EngineConfig(model=model, device="cpu", threads=1, prefix_cache_mib=0)
            worker = Worker(build_denoiser(config), config)
            times: dict[int, list[float]] = {0: [], 1: []}
            for number in range(rounds + 1):  # the first round warms up
                show(f"{case}: {f'round {number} of {rounds}' if number else 'warming up'}")
                for every in (0, 1) if number % 2 else (1, 0):
                    times[every].append(_ms_per_step(worker, every))
            plain, drafts = times[0][1:], times[1][1:]
            pairs = [b / a for a, b in zip(plain, drafts, strict=True)]
            yield {
                "case": case,
                "steps": STEPS,
                "plain_ms": median(plain),
                "drafts_ms": median(drafts),
                "ratio": median(drafts) / median(plain),
                "ratio_low": min(pairs),
                "ratio_high": max(pairs),
            }


def _ms_per_step(worker: Worker, drafts_every: int) -> float:
    """Returns the time of a denoising step of one block that has all STEPS of them."""
    sampling = Sampling(
        seed=0,
        ignore_eos=True,
        max_denoising_steps=STEPS,
        confidence_threshold=0.0,
        drafts_every=drafts_every,
    )
    request = GenerateRequest("bench", random_prompt(1000, 16), 1, sampling)
    started = process_time()
    sent = [encode(message) for message in worker.generate(request)]
    seconds = process_time() - started
    assert len(sent) == (STEPS if drafts_every else 1)
    return 1000 * seconds / STEPS
