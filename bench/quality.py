"""What quantising costs in quality and saves in memory, by scheme.

Quality on the demo model: exact match on its held-out prompts, and how far a first denoising step's
logits are from those of its own weights, float32 both. Its products are 128 to 256 wide, where the
released model's are 704 to 8192: it says whether a scheme works, not how well it does there.

Memory for the released dimensions: the arithmetic that the loader does, and what vision takes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer

from bench.compare import Row
from bench.generate import QUESTIONS
from bench.roofline import released
from bench.sides import demo_prompt
from demo.evaluate import evaluate
from demo.tasks import TASKS
from engine.config import DEMO_MODEL_PATH, EngineConfig
from engine.denoiser import Denoiser
from engine.dimensions import LayerShape
from engine.kv_cache import KVCache
from engine.loading import build_denoiser
from engine.model.diffusion_gemma import DiffusionGemma, ModelConfig, Rope
from engine.model.embedding import products
from engine.model.places import places
from engine.model.quantization import FromDense, empty_quantized
from engine.noise import block_noise
from engine.weight_size import weight_bytes
from engine.worker import Worker

# The released model's shape (transformers' DiffusionGemmaConfig), without weights.
RELEASED = ModelConfig(
    vocab_size=262144,
    hidden_size=2816,
    mlp_size=2112,
    query_heads=16,
    layers=tuple(
        LayerShape(2, 512, None) if index % 6 == 5 else LayerShape(8, 256, 1024)
        for index in range(30)
    ),
    experts=128,
    experts_per_token=8,
    expert_size=704,
    norm_eps=1e-6,
    softcap=30.0,
    sliding_rope=Rope(10_000.0),
    full_rope=Rope(1_000_000.0, 0.25),
    canvas_length=256,
    max_positions=262144,
    bidirectional_images=True,
)


@dataclass(frozen=True)
class Form:
    """How experts, linears and the rest are held; None is as they are in the checkpoint."""

    experts: FromDense | None
    linears: FromDense | None
    rest: Literal["int8", "fp8"] | None = None

    @property
    def case(self) -> str:
        if self.experts is self.linears is self.rest is None:
            return "unquantised"
        case = f"experts {self.experts or 'BF16'}, linears {self.linears or 'BF16'}"
        return f"{case}, rest {self.rest}" if self.rest else case


FORMS = (
    Form(None, None),
    Form("int8", "int8"),
    Form("fp8", "fp8"),
    Form("int4", None),
    Form("int4", "int8"),
    Form("int4", "int4"),
    Form("int4", "int8", "int8"),
    Form(None, None, "int8"),
    Form(None, None, "fp8"),
)


def rows(prompts: int) -> Iterator[Row]:
    """`prompts` of each task are answered."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_PATH)
    expected: list[Tensor] = []
    for form in FORMS:
        config = EngineConfig(
            device="cpu",
            dtype="float32",
            threads=1,
            quantize_experts=form.experts or "none",
            quantize_linears=form.linears or "none",
            quantize_rest=form.rest or "none",
            quantized_cache=False,
        )
        denoiser = build_denoiser(config)
        found = [first_logits(denoiser, demo_prompt(question)) for question in QUESTIONS]
        expected = expected or found
        scores = [
            evaluate(task, Worker(denoiser, config), tokenizer, prompts=prompts, temperature=1.0)
            for task in TASKS
        ]
        yield {
            "case": form.case,
            "exact_match": sum(s.right for s in scores) / sum(s.prompts for s in scores),
            "steps_a_block": sum(s.denoising_steps for s in scores) / sum(s.blocks for s in scores),
            "logit_error": _relative_error(torch.cat(found), torch.cat(expected)),
            "released_gb": released_bytes(form) / 1e9,
        }


@torch.inference_mode()
def first_logits(denoiser: Denoiser, prompt: list[int]) -> Tensor:
    """[C, V] of the first denoising step behind a prompt, softcapped."""
    model = denoiser.model
    canvas = model.config.canvas_length
    noise = block_noise(
        0,
        0,
        steps=1,
        canvas_length=canvas,
        vocab_size=model.config.vocab_size,
        device=torch.device("cpu"),
    )
    cache = KVCache(
        model.config.layers,
        capacity=len(prompt) + canvas,
        pass_tokens=len(prompt) + canvas,
        dtype=torch.float32,
        device=torch.device("cpu"),
        slack=0,
    )
    model.encode(torch.tensor(prompt), cache)
    hidden = model.decode(noise.canvases[0], None, cache)
    softcap = model.config.softcap
    return softcap * torch.tanh(products(hidden, model.embedding) / softcap)


def released_bytes(form: Form) -> int:
    """Of all weights of the released model on the device, the unquantised ones in BF16."""
    meta = torch.device("meta")
    with meta:
        model = DiffusionGemma(RELEASED)
    of_rest = {"rest": form.rest, "embedding": form.rest}
    schemes = {"experts": form.experts, "linears": form.linears, **of_rest}
    formats = {"experts": "none", "linears": "none", "rest": form.rest or "none"}
    total = weight_bytes(released(), **formats, element_bytes=2)["vision"]
    for place in places(model):
        scheme = schemes.get(place.kind)
        if scheme is None:
            total += 2 * place.shape.numel()
        else:
            total += empty_quantized(place.shape, scheme, meta).nbytes
    return total


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
