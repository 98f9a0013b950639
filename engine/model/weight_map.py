"""Where each tensor of a checkpoint belongs in the network: names, and which are merged into one.

Names are those of Transformers' unquantised checkpoint; of tied tensors the decoder's.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from engine.config import Formats
from engine.model.diffusion_gemma import DiffusionGemma, GatedMLP, Layer
from engine.weights.quantization import FromDense, Weight

# Which option quantises a target. What a checkpoint has quantised stays so in places of the first
# three kinds; `embedding` needs one scale a row, and only quantising here makes sure of that.
Kind = Literal["experts", "linears", "rest", "embedding", "dense"]

_ENCODER = "model.encoder.language_model."
_DECODER = "model.decoder."


@dataclass(frozen=True)
class WeightTarget:
    """A weight of ours, and by name and shape the tensors whose rows it is made of."""

    module: nn.Module
    attribute: str
    parts: dict[str, torch.Size]
    kind: Kind = "dense"

    @property
    def name(self) -> str:
        """That of its first tensor."""
        return next(iter(self.parts))

    @property
    def shape(self) -> torch.Size:
        shape: torch.Size = getattr(self.module, self.attribute).shape
        return shape

    def put(self, weight: Weight) -> None:
        """Replace what is there."""
        if not isinstance(weight, Tensor):
            delattr(self.module, self.attribute)  # a parameter's place takes parameters only
            setattr(self.module, self.attribute, weight)
        elif self.attribute in dict(self.module.named_buffers(recurse=False)):
            setattr(self.module, self.attribute, weight)
        else:
            setattr(self.module, self.attribute, nn.Parameter(weight, requires_grad=False))


def scheme(kind: Kind, formats: Formats) -> FromDense | None:
    """Returns the scheme in which such a weight is quantised while loading, or None."""
    match kind:
        case "dense":
            return None
        case "experts":
            asked = formats.experts
        case "linears":
            asked = formats.linears
        case "rest" | "embedding":
            asked = formats.rest
    return None if asked == "none" else asked


def weight_targets(model: DiffusionGemma) -> list[WeightTarget]:
    """All of a model's, layer by layer. Their shapes are those that the model has now."""
    conditioning = model.self_conditioning
    prefix = f"{_DECODER}self_conditioning."
    found = [
        _one(model, "embedding", f"{_DECODER}embed_tokens.weight", "embedding"),
        _one(conditioning.pre_norm, "weight", f"{prefix}pre_norm.weight"),
        *_mlp(conditioning.mlp, prefix, "rest"),
    ]
    for index, layer in enumerate(model.each_layer()):
        found += _layer_places(layer, f"layers.{index}.")
    return [*found, _one(model.norm, "weight", f"{_DECODER}norm.weight")]


def canonical(name: str) -> str:
    """One name for tied tensors: the decoder's. The scalars are the only ones that are not tied."""
    if name == "lm_head.weight":
        return f"{_DECODER}embed_tokens.weight"
    if name.startswith(_ENCODER) and not name.endswith(".layer_scalar"):
        return _DECODER + name.removeprefix(_ENCODER)
    return name


def _layer_places(layer: Layer, within: str) -> list[WeightTarget]:
    prefix = _DECODER + within
    attention, router, experts = layer.attention, layer.router, layer.experts
    size = attention.head_size
    rows = {"q_proj": attention.query_heads * size, "k_proj": attention.kv_heads * size}
    if attention.sliding:
        rows["v_proj"] = attention.kv_heads * size
    inputs = attention.qkv.shape[1]
    qkv = {
        f"{prefix}self_attn.{name}.weight": torch.Size([count, inputs])
        for name, count in rows.items()
    }
    norms = {
        "input_layernorm": layer.attention_norm,
        "self_attn.q_norm": attention.q_norm,
        "self_attn.k_norm": attention.k_norm,
        "post_attention_layernorm": layer.post_attention_norm,
        "pre_feedforward_layernorm": layer.mlp_norm,
        "post_feedforward_layernorm_1": layer.post_mlp_norm,
        "pre_feedforward_layernorm_2": layer.experts_norm,
        "post_feedforward_layernorm_2": layer.post_experts_norm,
        "post_feedforward_layernorm": layer.post_feedforward_norm,
    }
    return [
        WeightTarget(attention, "qkv", qkv, "linears"),
        _one(attention, "out", f"{prefix}self_attn.o_proj.weight", "linears"),
        *_mlp(layer.mlp, f"{prefix}mlp.", "linears"),
        _one(experts, "gate_up", f"{prefix}experts.gate_up_proj", "experts"),
        _one(experts, "down", f"{prefix}experts.down_proj", "experts"),
        *(_one(norm, "weight", f"{prefix}{name}.weight") for name, norm in norms.items()),
        _one(router, "scale", f"{prefix}router.scale"),
        _one(router, "proj", f"{prefix}router.proj.weight", "rest"),
        _one(router, "per_expert_scale", f"{prefix}router.per_expert_scale"),
        _one(layer, "decoder_scalar", f"{prefix}layer_scalar"),
        _one(layer, "encoder_scalar", f"{_ENCODER}{within}layer_scalar"),
    ]


def _mlp(mlp: GatedMLP, prefix: str, kind: Kind) -> list[WeightTarget]:
    both, inputs = mlp.gate_up.shape
    half = torch.Size([both // 2, inputs])
    gate_up = {f"{prefix}gate_proj.weight": half, f"{prefix}up_proj.weight": half}
    return [
        WeightTarget(mlp, "gate_up", gate_up, kind),
        _one(mlp, "down", f"{prefix}down_proj.weight", kind),
    ]


def _one(module: nn.Module, attribute: str, name: str, kind: Kind = "dense") -> WeightTarget:
    return WeightTarget(module, attribute, {name: getattr(module, attribute).shape}, kind)
