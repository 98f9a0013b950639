"""The two sides of a denoising step, Easel's and Transformers', each ready to run repeatedly.

Transformers' side consists of the parts of its `generate`, called as `generate` calls them.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, DiffusionGemmaForBlockDiffusion, DynamicCache

from bench.blocks import run_pass
from engine.config import DEMO_MODEL_PATH, EngineConfig
from engine.denoise.denoiser import Denoiser
from engine.loading import build_denoiser
from engine.messages import GenerateRequest, Sampling
from engine.schedule.sequence import Sequence, Work

STEP = 4  # the repeated step; like all but the first it has self-conditioning


def load_both(
    folder: Path, *, max_context: int = 32768
) -> tuple[Denoiser, DiffusionGemmaForBlockDiffusion]:
    """Returns the same checkpoint in Easel and in Transformers, in float32 on the CPU."""
    config = EngineConfig(
        model=str(folder), device="cpu", dtype="float32", threads=1, max_context=max_context
    )
    reference = DiffusionGemmaForBlockDiffusion.from_pretrained(
        folder, dtype=torch.float32, experts_implementation="grouped_mm"
    )
    return build_denoiser(config), reference.eval()


def random_prompt(vocab: int, length: int) -> list[int]:
    """Returns random tokens that are not special."""
    return torch.randint(6, vocab, (length,), generator=torch.Generator().manual_seed(0)).tolist()


def demo_prompt(*turns: str) -> list[int]:
    """Returns the tokens of a conversation with the demo model; the user has the first turn."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_PATH, trust_remote_code=False)
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return tokens


def easel_step(denoiser: Denoiser, prompt: list[int]) -> Callable[[], object]:
    """Returns a function that runs a denoising step behind this prompt. It finishes no canvas."""
    denoiser.sampler = dataclasses.replace(denoiser.sampler, confidence_threshold=-1.0)
    request = GenerateRequest("bench", prompt, max_tokens=1, sampling=Sampling(seed=0))
    sequence = Sequence.start(request)
    sequence.reuse(denoiser.start(sequence))
    while sequence.unencoded:
        run_pass(denoiser, [sequence], 1024)
    canvas = denoiser._slots[sequence].canvas
    assert canvas is not None

    def step() -> None:
        canvas.step_index = STEP
        denoiser.run([Work(sequence, [], denoise=True)])

    return step


@torch.inference_mode()
def transformers_step(
    model: DiffusionGemmaForBlockDiffusion,
    prompt: list[int],
    forward: Callable[..., Any] | None = None,
) -> Callable[[], object]:
    """Returns the same function for Transformers; `forward` can replace the network's forward."""
    cache = DynamicCache(config=model.config.get_text_config())
    tokens = torch.tensor([prompt])
    model.model.encoder(input_ids=tokens, cache=cache)
    parts: Any = model  # the annotations of its private methods are too narrow
    config = parts.generation_config
    sampler = parts._prepare_sampler(config)
    stopping = parts._prepare_diffusion_stopping_criteria(config)
    canvas, logits, masks, finished = parts._prepare_denoiser_inputs(
        decoder_attention_mask=None,
        cache=cache,
        sampler=sampler,
        diffusion_stopping_criteria=stopping,
        batch_size=1,
        device=tokens.device,
        model_kwargs={},
    )
    state = {"current_canvas": canvas, "argmax": canvas, "logits": logits}
    processor = parts._prepare_logits_processor(config, None)

    @torch.inference_mode()
    def step() -> None:
        state["current_canvas"], state["argmax"], state["logits"], _ = parts._denoising_step(
            decoder_forward=forward or model.forward,
            current_canvas=state["current_canvas"],
            argmax_canvas=state["argmax"],
            input_ids=tokens,
            decoder_position_ids=None,
            self_conditioning_logits=state["logits"],
            mask_mapping=masks,
            cache=cache,
            finished_denoising=torch.zeros_like(finished),
            cur_step=config.max_denoising_steps - STEP,
            sampler=sampler,
            logits_processor=processor,
            diffusion_stopping_criteria=stopping,
        )

    return step


def transformers_tail(model: DiffusionGemmaForBlockDiffusion, hidden: Tensor) -> Callable[..., Any]:
    """Returns a forward of the vocabulary's part alone, from given hidden states [1, C, D]."""
    embedding = model.model.decoder.embed_tokens.weight
    text: Any = model.config.text_config
    scale = text.hidden_size**0.5
    cap = text.final_logit_softcapping

    def forward(self_conditioning_logits: Tensor | None, **_others: Any) -> Any:
        if self_conditioning_logits is not None:
            probs = self_conditioning_logits.softmax(dim=-1, dtype=torch.float32)
            _soft = torch.matmul(probs.to(embedding.dtype), embedding) * scale
        logits = model.lm_head(hidden).to(torch.float32)
        logits = torch.tanh(logits / cap)
        return SimpleNamespace(logits=logits * cap)

    return forward
