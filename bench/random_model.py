"""Writes DiffusionGemma checkpoints of any shape with random weights, through Transformers.

Measurements of speed and tests of parity depend on the shape only, so they need no trained weights.
The weights are chosen so that mistakes show. Projections have a standard deviation of
1/sqrt(fan-in), so that every layer matters. Norm weights and scales differ from 1. Encoder and
decoder have different layer scalars.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaTextConfig,
    Gemma4VisionConfig,
)
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSamplerConfig,
)


@dataclass(frozen=True)
class Shape:
    """A model's dimensions and its sampler's settings. The defaults are tiny."""

    layers: str = "ssfsf"  # one letter per layer: s for sliding attention, f for full
    hidden: int = 48
    mlp: int = 64
    window: int = 8
    query_heads: int = 4
    kv_heads: int = 2
    full_kv_heads: int = 1
    head: int = 16
    full_head: int = 32
    experts: int = 4
    per_token: int = 2
    expert: int = 24
    canvas: int = 16
    vocab: int = 160
    positions: int = 512
    steps: int = 12
    entropy_bound: float = 2.0
    confidence_threshold: float = 0.3  # random models are not confident
    stability_threshold: int = 1


# Attention's scale is 1.0, so the norms of queries and keys determine how sharp it is. The norms
# behind a sublayer determine how much it adds. If these were 1, a random network would be chaotic:
# within a dozen denoising steps a rounding error of 1e-6 would change a token.
_NORM_MEANS = {
    "q_norm": 0.5,
    "k_norm": 0.5,
    "post_attention_layernorm": 0.4,
    "post_feedforward_layernorm.": 0.4,
    "self_conditioning.pre_norm": 0.4,
}
_SCALES = ("layer_scalar", "std_scale", "std_bias")
# Determines the size of the logits, so that at tiny widths they are neither flat nor certain.
_EMBEDDING_STD = 0.4


def write_random_model(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """Write a checkpoint of this shape into `folder`, in the released layout and in float32."""
    new_random_model(shape, seed).save_pretrained(folder)
    return folder


def new_random_model(shape: Shape, seed: int = 0) -> DiffusionGemmaForBlockDiffusion:
    """Returns a Transformers model of this shape, in float32 on the CPU."""
    text = DiffusionGemmaTextConfig(  # type: ignore[call-arg]  # it does not declare all fields
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=len(shape.layers),
        layer_types=[f"{'sliding' if kind == 's' else 'full'}_attention" for kind in shape.layers],
        num_attention_heads=shape.query_heads,
        num_key_value_heads=shape.kv_heads,
        num_global_key_value_heads=shape.full_kv_heads,
        head_dim=shape.head,
        global_head_dim=shape.full_head,
        sliding_window=shape.window,
        num_experts=shape.experts,
        top_k_experts=shape.per_token,
        moe_intermediate_size=shape.expert,
        max_position_embeddings=shape.positions,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        use_bidirectional_attention="vision",
    )
    vision = Gemma4VisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        patch_size=2,
        position_embedding_size=70 * 3,  # a strip of 70 tokens, the lowest limit of an image
        standardize=True,
    )
    config = DiffusionGemmaConfig(
        text_config=text,
        vision_config=vision,
        canvas_length=shape.canvas,
        image_token_id=3,
        boi_token_id=4,
        eoi_token_id=5,
    )
    model: DiffusionGemmaForBlockDiffusion = DiffusionGemmaForBlockDiffusion(config).eval()
    _randomise(model, torch.Generator().manual_seed(seed))
    model.generation_config.update(
        eos_token_id=[1],
        pad_token_id=0,
        max_denoising_steps=shape.steps,
        sampler_config=EntropyBoundSamplerConfig(shape.entropy_bound),
        t_min=0.4,
        t_max=0.8,
        confidence_threshold=shape.confidence_threshold,
        stability_threshold=shape.stability_threshold,
    )
    return model


@torch.no_grad()
def fill(
    name: str, tensor: Tensor, generator: torch.Generator, *, embedding_std: float = _EMBEDDING_STD
) -> None:
    """Overwrite a checkpoint's tensor of this name with random values."""
    if name.endswith(_SCALES):
        tensor.uniform_(0.5, 1.0, generator=generator)
    elif tensor.dim() == 1:
        mean = next((m for part, m in _NORM_MEANS.items() if part in name), 1.0)
        tensor.normal_(mean, 0.2 * mean, generator=generator)
    else:
        embedding = name.endswith("embed_tokens.weight")
        std = embedding_std if embedding else tensor.shape[-1] ** -0.5
        tensor.normal_(0.0, std, generator=generator)


def _randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        fill(name, parameter, generator)
    for name, buffer in model.named_buffers():
        if name.endswith(_SCALES):  # the other buffers are computed
            fill(name, buffer, generator)
