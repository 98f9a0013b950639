"""What quantising costs in quality and saves in memory, by scheme.

Quality on the demo model: exact match on its held-out prompts, and how far a first denoising step's
logits are from those of its own weights, float32 both. Its products are 128 to 256 wide, where the
released model's are 704 to 8192: it says whether a scheme works, not how well it does there.

Memory for the released dimensions: the plan's arithmetic.
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
from engine.config import DEMO_MODEL_PATH, EngineConfig, Format
from engine.denoiser import Denoiser
from engine.kv_cache import KVCache
from engine.loading import build_denoiser
from engine.model.embedding import products
from engine.model.quantization import FromDense
from engine.noise import block_noise
from engine.weight_size import weight_bytes
from engine.worker import Worker


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

    @property
    def formats(self) -> dict[str, Format]:
        """In the plan's terms."""
        named = {"experts": self.experts, "linears": self.linears, "rest": self.rest}
        return {part: scheme or "none" for part, scheme in named.items()}

    @property
    def options(self) -> dict[str, Format]:
        """In the configuration's."""
        return {f"quantize_{part}": scheme for part, scheme in self.formats.items()}


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
            quantized_cache=False,
            **form.options,
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
    return sum(weight_bytes(released(), element_bytes=2, **form.formats).values())


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
