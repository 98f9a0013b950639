"""The training forward pass: batches of examples through Transformers' own modules' weights.

Transformers' model is built for one canvas after one cache; training wants many of both in one
pass. So this computes the same function over the same parameters (`demo/train.py` checks that it
is the same before it starts), with masks in place of a cache and every expert for every token.

Letters: B examples, P prefix tokens (padded at the right), C canvas, D hidden, E experts.
"""

from dataclasses import dataclass
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

from demo.tokenizer import SPECIAL_TOKENS, VOCAB_SIZE

CANVAS = 32


def new_config(*, image_positions: int = 64) -> DiffusionGemmaConfig:
    """The demo model's shape; a vision tower as small as it can be, since one must be there."""
    layer_types = ["sliding", "sliding", "full", "sliding", "full"]
    text = DiffusionGemmaTextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=len(layer_types),
        layer_types=[f"{kind}_attention" for kind in layer_types],
        num_attention_heads=4,
        num_key_value_heads=2,
        num_global_key_value_heads=1,
        head_dim=32,
        global_head_dim=64,
        sliding_window=32,
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
        canvas_length=CANVAS,
        boi_token_id=SPECIAL_TOKENS["<|image>"],
        image_token_id=SPECIAL_TOKENS["<|image|>"],
        eoi_token_id=SPECIAL_TOKENS["<image|>"],
    )


def new_model(
    seed: int, config: DiffusionGemmaConfig | None = None
) -> DiffusionGemmaForBlockDiffusion:
    """Fresh weights of the demo model's shape, or of another.

    Attention's scale is 1.0, so q and k norms make q.k about 1 at the start.
    """
    model = DiffusionGemmaForBlockDiffusion(config or new_config())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.model.decoder.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.fill_(parameter.shape[0] ** -0.25)
    return model


@dataclass
class Pass:
    """Where the tokens of one pass are, and what they may see."""

    positions: Tensor  # [B, T]
    masks: dict[str, Tensor]  # by layer type: [B, 1, T, S] bool


class Network:
    """Encoder and decoder over batches. Collects the router's balance loss as it goes."""

    def __init__(self, model: DiffusionGemmaForBlockDiffusion) -> None:
        self.decoder = model.model.decoder
        self.text = model.config.text_config
        self.embedding = self.decoder.embed_tokens.weight
        self.balance = torch.zeros(())

    def encode(self, tokens: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """[B, P] -> last hidden states [B, P, D] and each layer's keys and values."""
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
        """Canvas [B, C] behind prefixes of these lengths [B] -> capped logits [B, C, V]."""
        size = canvas.shape[1]
        keys = torch.arange(cache[0][0].shape[2])
        seen = keys < lengths[:, None]  # [B, P]
        near = seen & (keys > lengths[:, None] - self.text.sliding_window)
        whole = torch.ones(canvas.shape, dtype=torch.bool)

        def mask(prefix: Tensor) -> Tensor:
            return torch.cat([prefix, whole], 1)[:, None, None].expand(-1, 1, size, -1)

        shape = Pass(
            lengths[:, None] + torch.arange(size),
            {"full_attention": mask(seen), "sliding_attention": mask(near)},
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
        """What the next step is told: the mean embedding at this temperature [B, 1, 1]."""
        probs = (logits / temperature).softmax(-1)
        return probs @ self.embedding * self.text.hidden_size**0.5

    def _layer(
        self, index: int, x: Tensor, shape: Pass, cached: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        layer = self.decoder.layers[index]
        kind = self.text.layer_types[index]
        attended, keys_values = self._attend(
            layer.self_attn, layer.input_layernorm(x), shape, kind, cached
        )
        x = x + layer.post_attention_layernorm(attended)
        dense = layer.post_feedforward_layernorm_1(layer.mlp(layer.pre_feedforward_layernorm(x)))
        sparse = self._experts(layer, x)
        x = x + layer.post_feedforward_layernorm(dense + layer.post_feedforward_layernorm_2(sparse))
        return x * layer.layer_scalar, keys_values

    def _attend(
        self, attention: Any, x: Tensor, shape: Pass, kind: str, cached: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        size = attention.head_dim
        cos, sin = self.decoder.rotary_emb(x, shape.positions, kind)

        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, size)).transpose(1, 2)

        def rotate(y: Tensor) -> Tensor:
            first, second = y.chunk(2, -1)
            return y * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]

        queries = rotate(attention.q_norm(heads(attention.q_proj(x))))
        raw = heads(attention.k_proj(x))
        values = raw if attention.v_proj is None else heads(attention.v_proj(x))
        keys, values = rotate(attention.k_norm(raw)), attention.v_norm(values)
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

    def _experts(self, layer: Any, x: Tensor) -> Tensor:
        """All experts for all tokens: with four, cheaper than sorting tokens by expert."""
        flat = x.flatten(0, 1)
        probs, weights, chosen = layer.router(flat)
        gates = torch.zeros_like(probs).scatter(1, chosen, weights)  # [T, E]
        share = (gates.detach() > 0).float().mean(0) / self.text.top_k_experts
        self.balance = self.balance + probs.shape[1] * (share * probs.mean(0)).sum()
        experts = layer.experts
        inputs = layer.pre_feedforward_layernorm_2(flat)
        gate_up = F.linear(inputs, experts.gate_up_proj.flatten(0, 1))
        gate, up = gate_up.unflatten(1, (probs.shape[1], 2, -1)).unbind(2)  # [T, E, I]
        inner = F.gelu(gate, approximate="tanh") * up * gates[:, :, None]
        down = experts.down_proj.transpose(0, 1).flatten(1)  # [D, E * I]
        return F.linear(inner.flatten(1), down).view_as(x)
