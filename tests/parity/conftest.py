"""Fixtures that load each checkpoint twice: in Transformers and in Easel."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import DiffusionGemmaForBlockDiffusion

from bench.random_model import write_random_model
from engine.config import DEMO_MODEL_PATH, EngineConfig
from engine.denoise.denoiser import Denoiser
from engine.denoise.noise import block_noise
from engine.loading import build_denoiser
from engine.messages import Block, GenerateRequest
from engine.tail.vocab_tail import inverse_cdf
from engine.worker import Worker
from tests.parity.tiny_models import SHAPES


@dataclass(frozen=True)
class Pair:
    """One checkpoint, loaded by Transformers and by Easel, in float32 on the CPU."""

    reference: DiffusionGemmaForBlockDiffusion
    denoiser: Denoiser

    def answer(self, request: GenerateRequest, end_tokens: frozenset[int]) -> list[Block]:
        """Returns the blocks of Easel's answer, with these end tokens for the checkpoint's.

        Padding does not end it, because it does not end the reference's.
        """
        sampler = self.denoiser.sampler
        self.denoiser.sampler = dataclasses.replace(sampler, end_tokens=end_tokens, padding=None)
        try:
            worker = Worker(self.denoiser, EngineConfig(prefill_chunk=10))
            blocks = [m for m in worker.generate(request) if isinstance(m, Block)]
        finally:
            self.denoiser.sampler = sampler
        assert blocks[-1].finish_reason is not None
        return blocks

    def prompt(self, length: int = 29, seed: int = 0) -> list[int]:
        """Returns random tokens that are not special ones."""
        vocab = self.denoiser.model.dimensions.vocab_size
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(6, vocab, (length,), generator=generator).tolist()


@pytest.fixture(scope="session", params=[*SHAPES, "demo"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = DEMO_MODEL_PATH
    if request.param != "demo":
        folder = write_random_model(tmp_path_factory.mktemp("tiny"), SHAPES[request.param])
    return load_pair(folder)


@pytest.fixture
def same_noise(pair, monkeypatch):
    """Make the reference use Easel's random numbers. Returns a function that sets the seed."""
    reference, sampler = pair.reference, pair.denoiser.sampler
    dimensions = pair.denoiser.model.dimensions
    state = {"block": -1, "canvas": 0, "uniforms": 0}

    def noise():
        return block_noise(
            state["seed"],
            state["block"],
            steps=sampler.max_denoising_steps,
            canvas_length=dimensions.canvas_length,
            vocab_size=dimensions.vocab_size,
            device=torch.device("cpu"),
        )

    def initialize_canvas(batch_size, device):
        state["canvas"] += 1
        return noise().canvases[state["canvas"] - 1][None]

    def multinomial(probs, num_samples):
        state["uniforms"] += 1
        return inverse_cdf(probs, noise().uniforms[state["uniforms"] - 1])[:, None]

    def prepare_denoiser_inputs(**kwargs):
        state.update(block=state["block"] + 1, canvas=0, uniforms=0)
        kwargs["sampler"].initialize_canvas = initialize_canvas
        return original(**kwargs)

    original = reference._prepare_denoiser_inputs
    monkeypatch.setattr(reference, "_prepare_denoiser_inputs", prepare_denoiser_inputs)
    monkeypatch.setattr(torch, "multinomial", multinomial)
    return lambda seed: state.update(seed=seed, block=-1)


def load_pair(folder: Path) -> Pair:
    reference = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=torch.float32)
    denoiser = build_denoiser(EngineConfig(model=str(folder), device="cpu", dtype="float32"))
    return Pair(reference.eval(), denoiser)
