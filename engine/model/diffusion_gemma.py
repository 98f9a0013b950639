"""DiffusionGemma: its configuration and the network, in reading order.

The rows of all sequences of a pass follow one another, so there is no batch dimension. Only
attention works on one sequence at a time. The reference is transformers'
`models/diffusion_gemma/modeling_diffusion_gemma.py`: the parity tests compare every number with it.

Encoder and decoder are two uses of the same weights. As the encoder they read tokens causally and
write the KV cache. As the decoder they read the cache and see the whole canvas bidirectionally.

Letters: T tokens of a pass or of one of its segments, R canvas positions (rows) of a pass, S
entries of a KV cache, D hidden size, H query heads, K key-value heads, d head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.model.attention import apply_rope, bidirectional_attention, causal_attention
from engine.model.embedding import Embedding, look_up
from engine.model.experts import Experts, Router
from engine.model.products import linear
from engine.model.rows import PassRows, Segment, Spans
from engine.sizing.dimensions import Dimensions, DimensionsError, LayerShape
from engine.weights.quantization import Kernel, Weight


class UnsupportedModelError(ValueError):
    """The checkpoint's configuration demands something that this engine does not compute."""


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of one layer type. It rotates the first of a head's d / 2 frequencies.

    The released full-attention layers rotate a quarter of them ("proportional" in Transformers):
    exponents are relative to the whole head size, and the remaining frequencies are zero.
    """

    theta: float
    rotated: float = 1.0  # the share of the head that is rotated

    def inverse_frequencies(self, head_size: int, device: torch.device) -> Tensor:
        """Returns the frequencies [d / 2] float32 of a head of this size, on `device`."""
        rotated = int(self.rotated * head_size // 2)
        exponents = torch.arange(0, 2 * rotated, 2, device=device, dtype=torch.float32) / head_size
        return F.pad(1.0 / self.theta**exponents, (0, head_size // 2 - rotated))


@dataclass(frozen=True)
class ModelConfig:
    """The numbers of a checkpoint's `config.json` that the network needs.

    They are checked: the network can compute a model with this configuration.
    """

    dimensions: Dimensions
    norm_eps: float
    softcap: float
    sliding_rope: Rope
    full_rope: Rope
    bidirectional_images: bool  # whether an image's tokens all see each other in the encoder

    @classmethod
    def from_transformers(cls, config: Any) -> "ModelConfig":
        """Returns the configuration of a `DiffusionGemmaConfig`.

        Raises UnsupportedModelError, naming every obstacle, if the network cannot compute it.
        """
        if config.model_type != "diffusion_gemma":
            raise UnsupportedModelError(
                f"model_type is {config.model_type!r}; supported: 'diffusion_gemma'"
            )
        text = config.text_config
        obstacles = _obstacles(config, text)
        if obstacles:
            raise UnsupportedModelError("; ".join(obstacles))
        try:
            dimensions = Dimensions.of(config.to_dict())
        except DimensionsError as error:
            raise UnsupportedModelError(str(error)) from error
        return cls(
            dimensions=dimensions,
            norm_eps=text.rms_norm_eps,
            softcap=text.final_logit_softcapping,
            sliding_rope=_rope(text.rope_parameters["sliding_attention"]),
            full_rope=_rope(text.rope_parameters["full_attention"]),
            bidirectional_images=text.use_bidirectional_attention == "vision",
        )


def _obstacles(config: Any, text: Any) -> list[str]:
    """Returns every reason why this configuration cannot be run.

    Each reason names its key and the supported values.
    """
    allowed: dict[str, tuple[Any, ...]] = {
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False,),
        "use_bidirectional_attention": (None, "vision"),
        "tie_word_embeddings": (True,),
    }
    obstacles = [
        f"text_config.{key} is {getattr(text, key)!r}; supported: "
        + " or ".join(repr(value) for value in values)
        for key, values in allowed.items()
        if getattr(text, key) not in values
    ]
    obstacles += [
        f"text_config.{key} is {getattr(text, key)!r}; it must be a number above 0"
        for key in ("final_logit_softcapping", "rms_norm_eps")
        if not _is_above_0(getattr(text, key))
    ]
    if not config.tie_word_embeddings:
        obstacles.append("tie_word_embeddings is False; supported: True")
    for layer_type in ("sliding_attention", "full_attention"):
        key = f"text_config.rope_parameters.{layer_type}"
        obstacles += _rope_obstacles(key, text.rope_parameters.get(layer_type))
    return obstacles


def _rope_obstacles(key: str, rope: Any) -> list[str]:
    if not isinstance(rope, dict):
        return [f"{key} is {rope!r}; it must be an object"]
    obstacles = []
    kind, share = rope.get("rope_type"), rope.get("partial_rotary_factor", 1.0)
    if kind not in ("default", "proportional"):
        obstacles.append(f"{key}.rope_type is {kind!r}; supported: 'default' or 'proportional'")
    if rope.get("factor", 1.0) != 1.0:
        obstacles.append(f"{key}.factor is {rope['factor']!r}; supported: 1.0")
    if not _is_above_0(rope.get("rope_theta")):
        obstacles.append(
            f"{key}.rope_theta is {rope.get('rope_theta')!r}; it must be a number above 0"
        )
    if not _is_above_0(share) or share > 1:
        obstacles.append(f"{key}.partial_rotary_factor is {share!r}; it must be above 0, at most 1")
    elif kind == "default" and share != 1.0:
        obstacles.append(f"{key}.partial_rotary_factor goes with rope_type 'proportional' only")
    return obstacles


def _is_above_0(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value < float("inf")


def _rope(parameters: dict[str, Any]) -> Rope:
    return Rope(parameters["rope_theta"], parameters.get("partial_rotary_factor", 1.0))


Ropes = dict[bool, tuple[Tensor, Tensor]]  # cos and sin [T, d] of sliding (True) and full layers


class RMSNorm(nn.Module):
    """Computes x / sqrt(mean(x^2) + eps) * weight, with statistics in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class GatedMLP(nn.Module):
    """Computes down(gelu(gate(x)) * up(x)), with gate and up merged into one product."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.gate_up: Weight = nn.Parameter(torch.empty(2 * inner, size))
        self.down: Weight = nn.Parameter(torch.empty(size, inner))

    def forward(self, x: Tensor) -> Tensor:
        gate, up = linear(x, self.gate_up).chunk(2, dim=-1)
        return linear(F.gelu(gate, approximate="tanh") * up, self.down)


class SelfConditioning(nn.Module):
    """Adds the previous step's prediction for each position to the canvas' embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.pre_norm = RMSNorm(config.dimensions.hidden_size, config.norm_eps)
        self.mlp = GatedMLP(config.dimensions.hidden_size, config.dimensions.mlp_size)

    def forward(self, embeddings: Tensor, soft_embeddings: Tensor | None) -> Tensor:
        """Returns the conditioned embeddings: [R, D], [R, D] -> [R, D].

        `soft_embeddings` of None stand for zeros, which the MLP keeps zero because it has no bias.
        """
        if soft_embeddings is not None:
            embeddings = embeddings + self.mlp(self.pre_norm(soft_embeddings))
        return F.rms_norm(embeddings, embeddings.shape[-1:], eps=self.eps)


class Attention(nn.Module):
    """The projections and norms around attention. Full layers use their keys as values."""

    def __init__(self, config: ModelConfig, shape: LayerShape) -> None:
        super().__init__()
        self.query_heads, self.kv_heads = config.dimensions.query_heads, shape.kv_heads
        self.head_size = shape.head_size
        self.sliding = shape.window is not None
        heads = self.query_heads + self.kv_heads * (2 if self.sliding else 1)
        hidden = config.dimensions.hidden_size
        self.qkv: Weight = nn.Parameter(torch.empty(heads * self.head_size, hidden))
        self.out: Weight = nn.Parameter(torch.empty(hidden, self.query_heads * self.head_size))
        self.q_norm = RMSNorm(self.head_size, config.norm_eps)
        self.k_norm = RMSNorm(self.head_size, config.norm_eps)

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries [H, T, d], keys [K, T, d] and values [K, T, d] of x [T, D].

        Queries and keys are normed and rotated, values are normed without a weight.
        """
        heads = linear(x, self.qkv).view(x.shape[0], -1, self.head_size).transpose(0, 1)
        queries, kv_heads = heads[: self.query_heads], heads[self.query_heads :]
        keys, values = kv_heads.chunk(2) if self.sliding else (kv_heads, kv_heads)
        queries = apply_rope(self.q_norm(queries), *rope)
        keys = apply_rope(self.k_norm(keys), *rope)
        values = F.rms_norm(values, (self.head_size,), eps=self.k_norm.eps)
        return queries, keys, values

    def merge(self, attended: Tensor) -> Tensor:
        """Returns the output projection of all heads: [H, T, d] -> [T, D]."""
        return linear(attended.transpose(0, 1).flatten(1), self.out)


class Layer(nn.Module):
    """Attention, then a dense MLP beside the experts, each with a norm before and after it."""

    encoder_scalar: Tensor
    decoder_scalar: Tensor

    def __init__(self, config: ModelConfig, shape: LayerShape) -> None:
        super().__init__()
        self.kernel: Kernel = "torch"  # for everything but attention and the products
        d = config.dimensions

        def norm() -> RMSNorm:
            return RMSNorm(d.hidden_size, config.norm_eps)

        self.attention_norm = norm()
        self.attention = Attention(config, shape)
        self.post_attention_norm = norm()
        self.mlp_norm = norm()
        self.mlp = GatedMLP(d.hidden_size, d.mlp_size)
        self.post_mlp_norm = norm()
        self.router = Router(
            d.hidden_size,
            d.experts,
            d.experts_per_token,
        )
        self.router_eps = config.norm_eps
        self.experts_norm = norm()
        self.experts = Experts(d.hidden_size, d.expert_size, d.experts)
        self.post_experts_norm = norm()
        self.post_feedforward_norm = norm()
        # The only tensors in which encoder and decoder differ.
        self.register_buffer("encoder_scalar", torch.empty(1))
        self.register_buffer("decoder_scalar", torch.empty(1))

    def finish(
        self, x: Tensor, attended: Tensor, encoded: int, following: RMSNorm
    ) -> tuple[Tensor, Tensor]:
        """Returns the layer's output [T, D], and the norm of it that follows.

        x [T, D] is the layer's input, and `attended` [T, D] is the attention. The first `encoded`
        rows are the encoder's.
        """
        if self.kernel == "triton":
            # Imported here because triton is slow to import, and not installed everywhere.
            from engine.model.fused_layer import finish

            return finish(self, x, attended, encoded, following)
        x = self._feed_forward(x + self.post_attention_norm(attended))
        x[:encoded] *= self.encoder_scalar
        x[encoded:] *= self.decoder_scalar
        return x, following.forward(x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        """Returns x [T, D] plus both MLPs. The router's input is normed without a weight."""
        dense = self.post_mlp_norm(self.mlp(self.mlp_norm(x)))
        routing = self.router(F.rms_norm(x, x.shape[-1:], eps=self.router_eps))
        sparse = self.post_experts_norm(self.experts(self.experts_norm(x), routing))
        out: Tensor = x + self.post_feedforward_norm(dense + sparse)
        return out


class DiffusionGemma(nn.Module):
    """The network. It is built with empty weights, which `engine.model.checkpoint` fills."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d = config.dimensions
        self.embedding: Embedding = nn.Parameter(torch.empty(d.vocab_size, d.hidden_size))
        self.self_conditioning = SelfConditioning(config)
        self.layers = nn.ModuleList(Layer(config, shape) for shape in d.layers)
        self.norm = RMSNorm(d.hidden_size, config.norm_eps)
        self.attention_kernel: Kernel = "torch"
        self._last_ropes: tuple[Spans, Ropes] | None = None
        # Of sliding (True) and full layers, by device.
        self._frequencies: dict[tuple[bool, torch.device], Tensor] = {}

    @property
    def dimensions(self) -> Dimensions:
        return self.config.dimensions

    @property
    def layer_kernel(self) -> Kernel:
        """Returns the kernel of everything but attention and the products."""
        return self.each_layer()[0].kernel

    @property
    def dtype(self) -> torch.dtype:
        """Returns the dtype of activations, and of weights that are not quantised."""
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @cached_property
    def embedding_scale(self) -> float:
        """Returns sqrt(D), rounded to the weights' dtype as in training."""
        return float(torch.tensor(self.dimensions.hidden_size**0.5, dtype=self.dtype))

    def embed(self, tokens: Tensor) -> Tensor:
        """Returns the scaled embeddings of tokens, [T] int64 -> [T, D]."""
        return look_up(self.embedding, tokens, self.dtype) * self.embedding_scale

    def run(
        self,
        segments: Sequence[Segment],
        soft_embeddings: Tensor | None = None,
    ) -> Tensor:
        """Make one pass over all segments' rows. Returns the canvases' hidden states [R, D].

        `soft_embeddings` [R, D] are the canvases' self-conditioning in the segments' order, with
        zeros for a canvas before its first step. They are None if all canvases are before it.

        In each layer the segments write and read their caches one after another, so that a canvas
        can see tokens that the same pass encodes. The caches store nothing of the pass until their
        owner calls `advance`.

        The last layer computes only keys and values of encoded rows, so a pass without a canvas
        returns no rows.
        """
        rows = PassRows.of(segments)
        x = self.embed(rows.tokens)
        rows.put_images(x)
        x[rows.encoded :] = self.self_conditioning(x[rows.encoded :], soft_embeddings)
        ropes = self.ropes(rows.spans, x)
        norms = self.norms
        normed = norms[0].forward(x)
        *layers, last_layer = enumerate(self.each_layer())
        for index, layer in layers:
            attended = self.attend(index, layer, normed, rows, ropes, skip_encoded=False)
            x, normed = layer.finish(x, attended, rows.encoded, norms[index + 1])
        index, layer = last_layer
        attended = self.attend(index, layer, normed, rows, ropes, skip_encoded=True)
        if not attended.shape[0]:  # the pass only encodes
            return attended
        _, normed = layer.finish(x[rows.encoded :], attended, 0, norms[index + 1])
        return normed

    def attend(
        self,
        index: int,
        layer: Layer,
        normed: Tensor,
        rows: PassRows,
        ropes: Ropes,
        *,
        skip_encoded: bool,
    ) -> Tensor:
        """Returns one layer's attention [T, D] of all rows, after its output projection.

        `normed` [T, D] is the layer's input behind its norm. If `skip_encoded` is set, only the
        canvases' rows are returned, [R, D].
        """
        window = self.dimensions.layers[index].window
        projected = layer.attention.project(normed, ropes[window is not None])
        attended: dict[int, Tensor] = {}
        for number, segment in enumerate(rows.segments):
            queries, new_keys, new_values = (each[:, rows.slices[number]] for each in projected)
            keys, values = segment.cache.write(index, new_keys, new_values, segment.start)
            if not (segment.causal and skip_encoded):
                attended[number] = self._attend_segment(rows, number, window, queries, keys, values)
        if not attended:
            return normed[:0]
        ordered = [attended[number] for number in rows.order if number in attended]
        return layer.attention.merge(torch.cat(ordered, dim=1))

    def _attend_segment(
        self,
        rows: PassRows,
        number: int,
        window: int | None,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """Returns the attention of one segment's queries over the keys and values that it may see.

        [H, T, d], [K, S, d], [K, S, d] -> [H, T, d].
        """
        segment = rows.segments[number]
        images = segment.images if self.config.bidirectional_images else ()
        # Triton's kernel has no mask, which the tokens of an image need to see later ones.
        if self.attention_kernel == "triton" and not images:
            # Imported here because triton is slow to import, and not installed everywhere.
            from engine.kernels.prefix_attention import prefix_attention

            window = window if segment.causal else None
            return prefix_attention(queries, keys, values, causal=segment.causal, window=window)
        if not segment.causal:
            return bidirectional_attention(queries, keys, values)
        mask = rows.mask(number, keys.shape[1], window, images)
        return causal_attention(queries, keys, values, mask)

    def each_layer(self) -> list[Layer]:
        return list(self.layers)  # type: ignore[arg-type]  # ModuleList forgets its element type

    @property
    def norms(self) -> list[RMSNorm]:
        """Returns the norm before each layer, and the one behind the last layer."""
        return [*(layer.attention_norm for layer in self.each_layer()), self.norm]

    def ropes(self, spans: Spans, x: Tensor) -> Ropes:
        """Returns cos and sin [T, d] at the positions of `spans`, in the dtype of x.

        The last result is cached, because all steps of a block have the same positions.
        """
        if self._last_ropes is None or self._last_ropes[0] != spans:
            self._last_ropes = (spans, self._new_ropes(spans, x))
        return self._last_ropes[1]

    def _new_ropes(self, spans: Spans, x: Tensor) -> Ropes:
        positions = torch.cat(
            [
                torch.arange(start, start + count, device=x.device, dtype=torch.float32)
                for start, count in spans
            ]
        )
        return self.ropes_at(positions, x.dtype)

    def ropes_at(self, positions: Tensor, dtype: torch.dtype) -> Ropes:
        """Returns cos and sin [T, d] at positions [T] float32."""
        ropes = {}
        for shape in dict.fromkeys(self.dimensions.layers):
            sliding = shape.window is not None
            rope = self.config.sliding_rope if sliding else self.config.full_rope
            key = sliding, positions.device
            if key not in self._frequencies:
                self._frequencies[key] = rope.inverse_frequencies(shape.head_size, key[1])
            frequencies = self._frequencies[key]
            angles = torch.outer(positions, frequencies)
            angles = torch.cat([angles, angles], dim=-1)  # [T, d]
            ropes[sliding] = (angles.cos().to(dtype), angles.sin().to(dtype))
        return ropes
