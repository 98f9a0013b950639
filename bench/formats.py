"""The loss of quality and the savings of memory for each choice of weight formats.

Quality is measured on the demo model in float32, by exact match on its held-out prompts and by the
relative error of a first denoising step's logits against those of the unquantised weights. The demo
model's products are 128 to 256 wide, and the released model's are 704 to 8192. So the measurement
shows whether a scheme works, not how well it does on the released model.

Memory is computed for the released dimensions with the plan's arithmetic.
"""

from collections.abc import Iterator
from dataclasses import asdict

import torch
from torch import Tensor
from transformers import AutoTokenizer

from bench.compare import Row, Show, of_case, silent
from bench.generate import QUESTIONS
from bench.passes import decode, encode
from bench.roofline import released
from bench.sides import demo_prompt
from demo.evaluate import answered, questions, total
from demo.tasks import TASKS
from engine.config import DEMO_MODEL_PATH, EngineConfig, Formats
from engine.denoise.denoiser import Denoiser
from engine.denoise.noise import block_noise
from engine.loading import build_denoiser
from engine.messages import Sampling
from engine.model.embedding import products
from engine.model.kv_cache import KVCache
from engine.sizing.weights import weight_bytes
from engine.worker import Worker

COLUMNS = ["exact_match", "steps_a_block", "logit_error", "released_gb"]
FORMATS = (
    Formats(),
    Formats("int8"),
    Formats("int8", "int8"),
    Formats("fp8", "fp8"),
    Formats("int4"),
    Formats("int4", "int8"),
    Formats("int4", "int4"),
    Formats("int4", "int8", "int8"),
    Formats(rest="int8"),
    Formats(rest="fp8"),
)


def case_of(formats: Formats) -> str:
    """Returns the name of these formats in a row."""
    if not formats.quantized:
        return "unquantised"
    named = {kind: "BF16" if name == "none" else name for kind, name in asdict(formats).items()}
    case = f"experts {named['experts']}, linears {named['linears']}"
    return case if formats.rest == "none" else f"{case}, rest {formats.rest}"


def rows(prompts: int, show: Show = silent) -> Iterator[Row]:
    """Yield one row for each choice of formats, answering `prompts` prompts of each task."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_PATH, trust_remote_code=False)
    expected: list[Tensor] = []
    for formats in FORMATS:
        show_case = of_case(show, case_of(formats))
        show_case("loading the demo model")
        config = EngineConfig(
            device="cpu",
            dtype="float32",
            threads=1,
            quantized_cache=False,
            **formats.options,
        )
        denoiser = build_denoiser(config)
        logits = [first_logits(denoiser, demo_prompt(question)) for question in QUESTIONS]
        expected = expected or logits
        scores = []
        for number, task in enumerate(TASKS, 1):
            show_case(f"task {number} of {len(TASKS)}")
            worker = Worker(denoiser, config)
            asked = questions(task, tokenizer, prompts)
            scores.append(answered(task, asked, worker, Sampling(seed=0)))
        score = total(scores)
        yield {
            "case": case_of(formats),
            "exact_match": score.accuracy,
            "steps_a_block": score.steps_per_block,
            "logit_error": _relative_error(torch.cat(logits), torch.cat(expected)),
            "released_gb": released_bytes(formats) / 1e9,
        }


@torch.inference_mode()
def first_logits(denoiser: Denoiser, prompt: list[int]) -> Tensor:
    """Returns the softcapped logits [C, V] of the first denoising step behind a prompt."""
    model = denoiser.model
    canvas = model.dimensions.canvas_length
    noise = block_noise(
        0,
        0,
        steps=1,
        canvas_length=canvas,
        vocab_size=model.dimensions.vocab_size,
        device=torch.device("cpu"),
    )
    cache = KVCache(
        model.dimensions.layers,
        capacity=len(prompt) + canvas,
        pass_tokens=len(prompt) + canvas,
        dtype=torch.float32,
        device=torch.device("cpu"),
        slack=0,
    )
    encode(model, torch.tensor(prompt), cache)
    hidden = decode(model, noise.canvases[0], None, cache)
    softcap = model.config.softcap
    return softcap * torch.tanh(products(hidden, model.embedding) / softcap)


def released_bytes(formats: Formats) -> int:
    """Returns the bytes of the released model's weights, with the unquantised ones in BF16."""
    return sum(weight_bytes(released(), formats, element_bytes=2).values())


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
