"""The time to first block of a person's request while four jobs run, and on an idle worker."""

from collections.abc import Iterator
from statistics import median
from time import perf_counter

from bench.compare import Row, Show, silent
from bench.sides import random_prompt
from engine.config import EngineConfig
from engine.loading import build_denoiser
from engine.messages import Block, Cancel, GenerateRequest, Sampling
from engine.worker import Worker

COLUMNS = ["idle_ms", "busy_ms", "step_ms", "target_ms", "ratio"]
JOBS, JOB_TOKENS, PROMPT_TOKENS = 4, 1500, 120


def rows(rounds: int, show: Show = silent) -> Iterator[Row]:
    show("loading the demo model")
    config = EngineConfig(device="cpu", threads=1, prefix_cache_mib=0)
    denoiser = build_denoiser(config)
    for case, priority in (("better priority", 0), ("the jobs' priority", 10)):
        idle: list[float] = []
        busy: list[float] = []
        steps: list[float] = []
        for turn in range(rounds + 1):  # the first turn warms up
            show(f"{case}: {f'round {turn} of {rounds}' if turn else 'warming up'}")
            worker = Worker(denoiser, config)
            person = _request(f"idle {turn}", turn, 32, priority)
            idle.append(_time_to_first_block(worker, person))
            _cancel(worker, [person])
            jobs = [_request(f"job {turn} {i}", i, JOB_TOKENS, 10) for i in range(JOBS)]
            for job in jobs:
                worker.handle(job)
            for _ in range(20 + turn):  # so that requests arrive at different points of a block
                started = perf_counter()
                worker.step()
                steps.append(perf_counter() - started)
            person = _request(f"busy {turn}", turn, 32, priority)
            busy.append(_time_to_first_block(worker, person))
            _cancel(worker, [person, *jobs])
        idle, busy, step = idle[1:], busy[1:], median(steps)
        pairs = [b / i for b, i in zip(busy, idle, strict=True)]
        yield {
            "case": f"four jobs, {case}",
            "idle_ms": median(idle) * 1e3,
            "busy_ms": median(busy) * 1e3,
            "step_ms": step * 1e3,
            "target_ms": (1.5 * median(idle) + step) * 1e3,
            "ratio": median(busy) / median(idle),
            "ratio_low": min(pairs),
            "ratio_high": max(pairs),
        }


def _request(name: str, seed: int, tokens: int, priority: int) -> GenerateRequest:
    sampling = Sampling(seed, priority=priority, ignore_eos=True)
    return GenerateRequest(name, random_prompt(1000, PROMPT_TOKENS), tokens, sampling)


def _time_to_first_block(worker: Worker, request: GenerateRequest) -> float:
    started = perf_counter()
    messages = worker.handle(request)
    while not any(isinstance(m, Block) and m.id == request.id for m in messages):
        messages = worker.step()
    return perf_counter() - started


def _cancel(worker: Worker, requests: list[GenerateRequest]) -> None:
    for request in requests:
        worker.handle(Cancel(request.id))
