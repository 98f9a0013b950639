"""The two sides of a denoising step, each ready to be run again and again.

Transformers' side is its own `generate`'s parts, called as `generate` calls them.
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

STEP = 4  # which step is repeated: one with self-conditioning, as all but the first have


def load_both(
    folder: Path, *, max_context: int = 32768
) -> tuple[Denoiser, DiffusionGemmaForBlockDiffusion]:
    """The same checkpoint in Easel and in Transformers, float32 on the CPU."""
    config = EngineConfig(
        model=str(folder), device="cpu", dtype="float32", threads=1, max_context=max_context
    )
    reference = DiffusionGemmaForBlockDiffusion.from_pretrained(
        folder, dtype=torch.float32, experts_implementation="grouped_mm"
    )
    return build_denoiser(config), reference.eval()


def random_prompt(vocab: int, length: int) -> list[int]:
    """Tokens that are not special."""
    return torch.randint(6, vocab, (length,), generator=torch.Generator().manual_seed(0)).tolist()


def demo_prompt(*turns: str) -> list[int]:
    """A conversation with the demo model, the user's turns and its own by turns."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_PATH)
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return tokens


def easel_step(denoiser: Denoiser, prompt: list[int]) -> Callable[[], object]:
    """A denoising step behind this prompt; the canvas is never finished."""
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
    """The same of Transformers; `forward` in place of the whole network's."""
    cache = DynamicCache(config=model.config.get_text_config())
    tokens = torch.tensor([prompt])
    model.model.encoder(input_ids=tokens, cache=cache)
    config = model.generation_config
    sampler = model._prepare_sampler(config)
    stopping = model._prepare_diffusion_stopping_criteria(config)
    canvas, logits, masks, finished = model._prepare_denoiser_inputs(
        decoder_attention_mask=None,
        cache=cache,
        sampler=sampler,
        diffusion_stopping_criteria=stopping,
        batch_size=1,
        device=tokens.device,
        model_kwargs={},
    )
    state = {"current_canvas": canvas, "argmax": canvas, "logits": logits}
    processor = model._prepare_logits_processor(config, None)

    @torch.inference_mode()
    def step() -> None:
        state["current_canvas"], state["argmax"], state["logits"], _ = model._denoising_step(
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
    """What its forward does with the vocabulary, behind given hidden states [1, C, D]."""
    embedding = model.model.decoder.embed_tokens.weight
    scale = model.config.text_config.hidden_size**0.5
    cap = model.config.text_config.final_logit_softcapping

    def forward(self_conditioning_logits: Tensor | None, **_others: Any) -> Any:
        if self_conditioning_logits is not None:
            probs = self_conditioning_logits.softmax(dim=-1, dtype=torch.float32)
            _soft = torch.matmul(probs.to(embedding.dtype), embedding) * scale
        logits = model.lm_head(hidden).to(torch.float32)
        logits = torch.tanh(logits / cap)
        return SimpleNamespace(logits=logits * cap)

    return forward
