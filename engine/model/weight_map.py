"""Maps the weights of the network to the tensors of a checkpoint from which they are made.

Tensors have the names of Transformers' unquantised checkpoint. Tied tensors have the decoder's
name.
"""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from engine.config import Formats
from engine.model.diffusion_gemma import DiffusionGemma, GatedMLP, Layer
from engine.weights.quantization import FromDense, Weight

# The kind of a target decides which option quantises it. The first three kinds keep a weight as it
# is if the checkpoint stores it quantised, the other two dequantise it. The embedding needs one
# scale a row, which only quantising here guarantees.
Kind = Literal["experts", "linears", "rest", "embedding", "dense"]

# Tensors that the configuration determines. Old checkpoints and some tools store them.
_COMPUTED = re.compile(r"rotary_emb\.(\w+_)?inv_freq$")
_ENCODER = "model.encoder.language_model."
_DECODER = "model.decoder."


@dataclass(frozen=True)
class WeightTarget:
    """A weight of the network, and the checkpoint's tensors whose rows it is made of."""

    module: nn.Module
    attribute: str
    parts: dict[str, torch.Size]  # each tensor's shape by its name
    kind: Kind = "dense"

    @property
    def name(self) -> str:
        """Returns the name of the first tensor."""
        return next(iter(self.parts))

    @property
    def shape(self) -> torch.Size:
        shape: torch.Size = getattr(self.module, self.attribute).shape
        return shape

    def put(self, weight: Weight) -> None:
        """Set the module's attribute to `weight`, instead of its present value."""
        if not isinstance(weight, Tensor):
            delattr(self.module, self.attribute)  # a parameter can't be set to another type
            setattr(self.module, self.attribute, weight)
        elif self.attribute in dict(self.module.named_buffers(recurse=False)):
            setattr(self.module, self.attribute, weight)
        else:
            setattr(self.module, self.attribute, nn.Parameter(weight, requires_grad=False))


def scheme(kind: Kind, formats: Formats) -> FromDense | None:
    """Returns the scheme in which weights of this kind are quantised while loading, or None."""
    match kind:
        case "dense":
            return None
        case "experts":
            requested = formats.experts
        case "linears":
            requested = formats.linears
        case "rest" | "embedding":
            requested = formats.rest
    return None if requested == "none" else requested


def weight_targets(model: DiffusionGemma) -> list[WeightTarget]:
    """Returns the targets of all of the model's weights, layer by layer.

    Their shapes are those that the model's weights have now.
    """
    conditioning = model.self_conditioning
    prefix = f"{_DECODER}self_conditioning."
    targets = [
        _one(model, "embedding", f"{_DECODER}embed_tokens.weight", "embedding"),
        _one(conditioning.pre_norm, "weight", f"{prefix}pre_norm.weight"),
        *_mlp(conditioning.mlp, prefix, "rest"),
    ]
    for index, layer in enumerate(model.each_layer()):
        targets += _layer_targets(layer, f"layers.{index}.")
    return [*targets, _one(model.norm, "weight", f"{_DECODER}norm.weight")]


def canonical(name: str) -> str:
    """Returns the decoder's name for a tied tensor, and any other name unchanged.

    All of the encoder's language model is tied to the decoder, except for the layers' scalars.
    """
    if name == "lm_head.weight":
        return f"{_DECODER}embed_tokens.weight"
    if name.startswith(_ENCODER) and not name.endswith(".layer_scalar"):
        return _DECODER + name.removeprefix(_ENCODER)
    return name


def is_computed(name: str) -> bool:
    """Returns whether a tensor is computed from the configuration, whatever a file has for it."""
    return _COMPUTED.search(name) is not None


def _layer_targets(layer: Layer, within: str) -> list[WeightTarget]:
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
