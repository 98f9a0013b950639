"""Whole answers of the demo model and a step's memory at V = 262144, against Transformers."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import DiffusionGemmaForBlockDiffusion

from bench.compare import Row, Show, alternate, of_case, peak_bytes, silent
from bench.random_model import Shape, write_random_model
from bench.sides import demo_prompt, easel_step, load_both, transformers_step
from engine.config import DEMO_MODEL_PATH, EngineConfig
from engine.denoise.denoiser import Denoiser
from engine.messages import Block, GenerateRequest, Sampling
from engine.worker import Worker

COLUMNS = [
    "easel_tokens_s",
    "transformers_tokens_s",
    "easel_mib",
    "transformers_mib",
    "ratio",
]
QUESTIONS = (
    "hello",
    "What can you do?",
    "Count to 50",
    "Name the months of the year",
    "What is the capital of Norway?",
    "Repeat 'river' 6 times.",
    "Make JSON with name Anna and age 30",
    "Sort these numbers: 9 31 7 24",
)
ROOM = 256  # the most tokens of an answer; the longest has 100


def rows(rounds: int, show: Show = silent) -> Iterator[Row]:
    show("loading the demo model")
    denoiser, reference = load_both(DEMO_MODEL_PATH)
    prompts = [demo_prompt(question) for question in QUESTIONS]
    for cache in ("dynamic", "static"):
        # With its static cache Transformers compiles the model, for which it needs a C++ compiler.
        # Compilation is therefore disabled, and the static cache is used eagerly.
        tokens = {"easel": 0, "transformers": 0}
        ours = _easel(denoiser, prompts, tokens)
        theirs = _transformers(reference, prompts, tokens, cache)
        show_case = of_case(show, f"{len(prompts)} answers, {cache} cache")
        row = alternate(ours, theirs, rounds=rounds, show=show_case)
        yield {
            "case": f"demo model, {len(prompts)} answers, {cache} cache",
            **row,
            "easel_tokens_s": tokens["easel"] / row["easel_ms"] * 1e3,
            "transformers_tokens_s": tokens["transformers"] / row["transformers_ms"] * 1e3,
        }
    show("measuring the memory of a step")
    yield _memory()


def _easel(
    denoiser: Denoiser, prompts: list[list[int]], tokens: dict[str, int]
) -> Callable[[], None]:
    worker = Worker(denoiser, EngineConfig())

    def answer_all() -> None:
        denoiser.forget_prefixes()  # Transformers keeps none either
        tokens["easel"] = 0
        for seed, prompt in enumerate(prompts):
            for message in worker.generate(GenerateRequest("bench", prompt, ROOM, Sampling(seed))):
                if isinstance(message, Block):
                    tokens["easel"] += len(message.tokens)

    return answer_all


def _transformers(
    model: DiffusionGemmaForBlockDiffusion,
    prompts: list[list[int]],
    tokens: dict[str, int],
    cache: str,
) -> Callable[[], None]:
    more = {} if cache == "dynamic" else {"cache_implementation": "static", "disable_compile": True}
    pad = model.generation_config.pad_token_id

    @torch.inference_mode()
    def answer_all() -> None:
        tokens["transformers"] = 0
        for seed, prompt in enumerate(prompts):
            torch.manual_seed(seed)
            made = model.generate(torch.tensor([prompt]), max_new_tokens=ROOM, **more)
            answer = made.sequences[0, len(prompt) :]
            tokens["transformers"] += int((answer != pad).sum())

    return answer_all


def _memory() -> Row:
    shape = Shape(
        layers="sf",
        hidden=256,
        mlp=512,
        canvas=256,
        vocab=262144,
        positions=4096,
        steps=48,
        window=1024,
    )
    with tempfile.TemporaryDirectory() as folder:
        denoiser, reference = load_both(write_random_model(Path(folder), shape), max_context=1024)
    prompt = [7] * 64
    ours, theirs = easel_step(denoiser, prompt), transformers_step(reference, prompt)
    for step in (ours, theirs):
        step()  # allocates what is kept from step to step
    our_peak, their_peak = peak_bytes(ours), peak_bytes(theirs)
    return {
        "case": "memory of a step, d=256, V=262144",
        "easel_mib": our_peak / 2**20,
        "transformers_mib": their_peak / 2**20,
        **dict.fromkeys(("ratio", "ratio_low", "ratio_high"), their_peak / our_peak),
    }
