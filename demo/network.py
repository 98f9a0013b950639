"""The forward pass for training: batches of examples, with the parameters of Transformers' modules.

A pass of Transformers' model takes one canvas after one cache. Training needs many canvases with
many prefixes in one pass. This module therefore computes the same function with the same
parameters, but with masks instead of a cache and with every expert for every token.
`demo/train.py` checks before each training that both compute the same.

Letters: B examples, P prefix tokens (padded at the right), C canvas, D hidden size, E experts,
V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaTextConfig,
    Gemma4VisionConfig,
)

from demo.first_heads import set_heads
from demo.tokenizer import SPECIAL_TOKENS, VOCAB_SIZE

CANVAS = 64
LAYERS = ("sliding", "sliding", "full", "sliding", "full")


def new_config(
    *, canvas: int = CANVAS, image_positions: int = 64, layers: Sequence[str] = LAYERS
) -> DiffusionGemmaConfig:
    """Returns the demo model's configuration.

    The architecture requires a vision tower, so it has one of the least size.
    """
    text = DiffusionGemmaTextConfig(  # type: ignore[call-arg]  # it does not declare all fields
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=len(layers),
        layer_types=[f"{kind}_attention" for kind in layers],
        num_attention_heads=6,
        num_key_value_heads=2,
        num_global_key_value_heads=2,
        head_dim=32,
        global_head_dim=64,
        sliding_window=128,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=96,
        max_position_embeddings=2048,
        bos_token_id=SPECIAL_TOKENS["<bos>"],
        eos_token_id=SPECIAL_TOKENS["<eos>"],
        pad_token_id=SPECIAL_TOKENS["<pad>"],
        use_bidirectional_attention="vision",
    )
    vision = Gemma4VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
        position_embedding_size=image_positions,
    )
    return DiffusionGemmaConfig(
        text_config=text,
        vision_config=vision,
        canvas_length=canvas,
        boi_token_id=SPECIAL_TOKENS["<|image>"],
        image_token_id=SPECIAL_TOKENS["<|image|>"],
        eoi_token_id=SPECIAL_TOKENS["<image|>"],
    )


def new_model(
    seed: int, config: DiffusionGemmaConfig | None = None, *, heads: bool = False
) -> DiffusionGemmaForBlockDiffusion:
    """Returns a model with fresh random weights, by default in the demo model's shape.

    With `heads` it has the attention heads that a training starts with (`demo/first_heads.py`).

    Attention's scale is 1.0, so the norms of queries and keys are chosen such that their products
    are about 1 at the start.
    """
    model = DiffusionGemmaForBlockDiffusion(config or new_config())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.model.decoder.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.fill_(parameter.shape[0] ** -0.25)
        if heads:
            set_heads(model, generator)
    return model


def text_config(model: DiffusionGemmaForBlockDiffusion) -> DiffusionGemmaTextConfig:
    """Returns the language model's part of a model's configuration."""
    config = model.config.text_config
    assert isinstance(config, DiffusionGemmaTextConfig)
    return config


class RMSNorm(torch.autograd.Function):
    """The norm of Transformers' modules, in fewer operations.

    On one core of a Xeon, a norm of 3,000 rows and its derivative took 3.0 ms, and 8.3 ms in the
    operations of those modules.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
        """Returns x [.., D] over the root of its mean square, times the weight [D] if any."""
        size = x.shape[-1]
        root = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = root.square_().div_(size).add_(epsilon).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight)
        output: Tensor = normed if weight is None else normed * weight
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (gradient,) = gradients
        normed, scale, weight = ctx.saved_tensors
        products = gradient * normed
        of_weight = None
        if weight is not None:
            of_weight = products.flatten(0, -2).sum(0)
            gradient = gradient * weight
            mean = (products @ weight).unsqueeze(-1) / len(weight)
        else:
            mean = products.mean(-1, keepdim=True)
        return torch.addcmul(gradient, normed, mean, value=-1).mul_(scale), of_weight, None


class Rotation(torch.autograd.Function):
    """Rotary position embeddings."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Returns heads [B, H, T, D], rotated by angles [B, 1, T, D / 2] of these cos and sin."""
        ctx.save_for_backward(cos, sin)
        return _rotated(heads, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradients[0], cos, sin, -1), None, None


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    half = heads.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    rotated = torch.empty_like(heads)
    torch.mul(first, cos, out=rotated[..., :half]).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=rotated[..., half:]).addcmul_(first, sin, value=sign)
    return rotated


@dataclass
class Pass:
    """The positions and attention masks of the tokens of one pass."""

    positions: Tensor  # [B, T]
    masks: dict[str, Tensor]  # [B, 1, T, S] bool, by layer type
    _angles: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def angles(self, embedding: Any, kind: str) -> tuple[Tensor, Tensor]:
        """Returns cos and sin [B, 1, T, D / 2] of the angles by which a layer type rotates."""
        if kind not in self._angles:
            cos, sin = embedding(torch.empty(()), self.positions, kind)
            half = cos.shape[-1] // 2  # the second half repeats the first
            self._angles[kind] = cos[:, None, :, :half], sin[:, None, :, :half]
        return self._angles[kind]


class Network:
    """Encoder and decoder for batches. Every pass adds to the router's loss `balance`."""

    def __init__(self, model: DiffusionGemmaForBlockDiffusion) -> None:
        self.decoder = model.model.decoder
        self.text = text_config(model)
        assert self.text.layer_types is not None
        self._layer_types = self.text.layer_types
        self.embedding = self.decoder.embed_tokens.weight
        self.balance = torch.zeros(())

    def encode(self, tokens: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Encode tokens [B, P].

        Returns the last hidden states [B, P, D], and the keys and values of each layer.
        """
        length = tokens.shape[1]
        positions = torch.arange(length)
        causal = positions[:, None] >= positions[None, :]
        near = positions[:, None] - positions[None, :] < self.text.sliding_window
        shape = Pass(
            positions.expand(tokens.shape),
            {
                "full_attention": causal[None, None],
                "sliding_attention": (causal & near)[None, None],
            },
        )
        x = F.embedding(tokens, self.embedding) * self.text.hidden_size**0.5
        cache: list[tuple[Tensor, Tensor]] = []
        for index in range(len(self.decoder.layers)):
            x, keys_values = self._layer(index, x, shape, None)
            cache.append(keys_values)
        return self.decoder.norm(x), cache

    def decode(
        self,
        canvas: Tensor,
        lengths: Tensor,
        cache: list[tuple[Tensor, Tensor]],
        soft_embeddings: Tensor | None,
    ) -> Tensor:
        """Denoise canvases [B, C] behind prefixes of these lengths [B].

        Returns the softcapped logits [B, C, V].
        """
        size = canvas.shape[1]
        keys = torch.arange(cache[0][0].shape[2])
        visible = keys < lengths[:, None]  # [B, P]
        near = visible & (keys > lengths[:, None] - self.text.sliding_window)
        whole = torch.ones(canvas.shape, dtype=torch.bool)

        def mask(prefix: Tensor) -> Tensor:
            return torch.cat([prefix, whole], 1)[:, None, None].expand(-1, 1, size, -1)

        shape = Pass(
            lengths[:, None] + torch.arange(size),
            {"full_attention": mask(visible), "sliding_attention": mask(near)},
        )
        x = F.embedding(canvas, self.embedding) * self.text.hidden_size**0.5
        if soft_embeddings is None:
            soft_embeddings = torch.zeros_like(x)
        x = self.decoder.self_conditioning(x, soft_embeddings)
        for index in range(len(self.decoder.layers)):
            x, _ = self._layer(index, x, shape, cache[index])
        return self.logits(self.decoder.norm(x))

    def logits(self, hidden: Tensor) -> Tensor:
        cap = self.text.final_logit_softcapping
        return (F.linear(hidden, self.embedding) / cap).tanh() * cap

    def soft_embeddings(self, logits: Tensor, temperature: Tensor) -> Tensor:
        """Returns the mean embeddings [B, C, D] with which the next step is self-conditioned.

        `temperature` is [B, 1, 1].
        """
        probs = (logits / temperature).softmax(-1)
        soft: Tensor = F.linear(probs, self.embedding.t()) * self.text.hidden_size**0.5
        return soft

    def _layer(
        self, index: int, x: Tensor, shape: Pass, cached: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        layer = self.decoder.layers[index]
        kind = self._layer_types[index]
        attended, keys_values = self._attend(
            layer.self_attn, _norm(layer.input_layernorm, x), shape, kind, cached
        )
        x = x + _norm(layer.post_attention_layernorm, attended)
        dense = self._mlp(layer.mlp, _norm(layer.pre_feedforward_layernorm, x))
        dense = _norm(layer.post_feedforward_layernorm_1, dense)
        sparse = _norm(layer.post_feedforward_layernorm_2, self._experts(layer, x))
        x = x + _norm(layer.post_feedforward_layernorm, dense + sparse)
        return x * layer.layer_scalar, keys_values

    def _attend(
        self, attention: Any, x: Tensor, shape: Pass, kind: str, cached: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        size = attention.head_dim
        cos, sin = shape.angles(self.decoder.rotary_emb, kind)
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        weights = [part.weight for part in parts if part is not None]
        # In one product of all, the rows are rounded to bfloat16 once (`demo/mixed_precision.py`).
        projected = F.linear(x, torch.cat(weights)).split([len(each) for each in weights], -1)
        heads = [each.unflatten(-1, (-1, size)).transpose(1, 2) for each in projected]
        queries = Rotation.apply(_norm(attention.q_norm, heads[0]), cos, sin)
        keys = Rotation.apply(_norm(attention.k_norm, heads[1]), cos, sin)
        values = _norm(attention.v_norm, heads[-1])
        new = (keys, values)
        if cached is not None:
            keys = torch.cat([cached[0], keys], 2)
            values = torch.cat([cached[1], values], 2)
        group = queries.shape[1] // keys.shape[1]
        out = F.scaled_dot_product_attention(
            queries,
            keys.repeat_interleave(group, 1),
            values.repeat_interleave(group, 1),
            attn_mask=shape.masks[kind],
            scale=1.0,
        )
        return attention.o_proj(out.transpose(1, 2).flatten(2)), new

    def _mlp(self, mlp: Any, x: Tensor) -> Tensor:
        gate, up = F.linear(x, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])).chunk(2, -1)
        down: Tensor = mlp.down_proj(F.gelu(gate, approximate="tanh") * up)
        return down

    def _experts(self, layer: Any, x: Tensor) -> Tensor:
        """Run all experts for all tokens: with four, sorting tokens by expert would cost more."""
        flat = x.flatten(0, 1)
        probs, weights, chosen = layer.router(flat)
        gates = torch.zeros_like(probs).scatter(1, chosen, weights)  # [T, E]
        assert self.text.top_k_experts is not None
        share = (gates.detach() > 0).float().mean(0) / self.text.top_k_experts
        self.balance = self.balance + probs.shape[1] * (share * probs.mean(0)).sum()
        experts = layer.experts
        inputs = _norm(layer.pre_feedforward_layernorm_2, flat)
        gate_up = F.linear(inputs, experts.gate_up_proj.flatten(0, 1))
        gate, up = gate_up.unflatten(1, (probs.shape[1], 2, -1)).unbind(2)  # [T, E, I]
        inner = F.gelu(gate, approximate="tanh") * up * gates[:, :, None]
        down = experts.down_proj.transpose(0, 1).flatten(1)  # [D, E * I]
        return F.linear(inner.flatten(1), down).view_as(x)


def _norm(module: Any, x: Tensor) -> Tensor:
    weight = module.weight if module.with_scale else None
    normed: Tensor = RMSNorm.apply(x, weight, module.eps)
    return normed
