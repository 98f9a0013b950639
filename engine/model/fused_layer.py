"""The parts of the network around its products, by Triton's kernels.

By PyTorch's operations they are some fifty launches a layer, most of which take longer to start
than to run. Here they are four behind attention, one before it, and one before the first layer. The
plain forms are the modules of `engine/model/diffusion_gemma.py`, to which
`engine/model/kernel_trials.py` compares these. Triton is slow to import and not installed
everywhere, so this module is imported where it is needed.

Letters: N segments of a pass, R rows, D hidden size, H query heads, d head size, B caches.
"""

import torch
from torch import Tensor

from engine.kernels.combine import combine
from engine.kernels.condition import condition
from engine.kernels.dispatch import dispatch
from engine.kernels.gated import gated
from engine.kernels.prefix_attention import prefix_attention
from engine.kernels.route import route
from engine.kernels.write_heads import write_heads
from engine.model.diffusion_gemma import DiffusionGemma, Layer, RMSNorm
from engine.model.embedding import look_up
from engine.model.products import grouped_product, linear


def begin(model: DiffusionGemma, tokens: Tensor, soft_embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the conditioned embeddings of canvases' tokens, and the first layer's norm of them.

    [R] int64, [R, D] -> [R, D], [R, D].
    """
    own = model.self_conditioning
    (inner,) = gated(linear(own.pre_norm(soft_embeddings), own.mlp.gate_up))
    return condition(
        look_up(model.embedding, tokens, model.dtype),
        linear(inner, own.mlp.down),
        model.each_layer()[0].attention_norm.weight,
        scale=model.embedding_scale,
        eps=own.eps,
    )


def attend(
    layer: Layer,
    normed: Tensor,
    rope: tuple[Tensor, Tensor],
    entries: Tensor,
    slots: Tensor,
    behind: Tensor,
    spans: Tensor,
    *,
    causal: int,
    window: int | None,
    skipped: int,
) -> Tensor:
    """Returns the layer's attention [R, D] of segments of equal length, given its normed input.

    This input is [R, D], and `rope` are cos and sin [R, d]. The keys and values of all segments are
    written into `entries` [B, 2, K, S, d], from the index `behind` [N] on of each segment's cache
    `slots` [N]. Then each segment sees the entries of its `spans` [N, 2]. The first `causal`
    segments are causal, with the layer's `window`. The first `skipped` rows have no attention.
    """
    own = layer.attention
    queries = write_heads(
        linear(normed, own.qkv),
        own.q_norm.weight,
        own.k_norm.weight,
        rope,
        entries,
        slots,
        behind,
        query_heads=own.query_heads,
        eps=own.q_norm.eps,
    )
    queries = queries.transpose(0, 1)
    keys, values = entries.unbind(1)
    border = causal * (normed.shape[0] // slots.shape[0])
    attended = prefix_attention(
        queries[:, border:], keys, values, spans[causal:], slots=slots[causal:]
    )
    if border > skipped:
        encoded = prefix_attention(
            queries[:, :border],
            keys,
            values,
            spans[:causal],
            slots=slots[:causal],
            causal=True,
            window=window,
        )
        attended = torch.cat([encoded, attended], dim=1)
    return own.merge(attended)


def finish(
    layer: Layer, x: Tensor, attended: Tensor, encoded: int, following: RMSNorm
) -> tuple[Tensor, Tensor]:
    """Returns the same as `Layer.finish`."""
    router, experts, mlp = layer.router, layer.experts, layer.mlp
    assert isinstance(router.proj, Tensor), "the kernel was chosen for a router in full"
    routed = route(
        x,
        attended,
        layer.post_attention_norm.weight,
        layer.mlp_norm.weight,
        layer.experts_norm.weight,
        router.scale,
        router.proj,
        router.per_expert_scale,
        per_token=router.per_token,
        eps=layer.router_eps,
    )
    rows = dispatch(routed.sparse, routed.experts, experts.gate_up.shape[0])
    dense, sparse = gated(
        linear(routed.dense, mlp.gate_up),
        grouped_product(rows.rows, experts.gate_up, rows.ends, experts.kernel),
    )
    return combine(
        routed.x,
        linear(dense, mlp.down),
        grouped_product(sparse, experts.down, rows.ends, experts.kernel),
        rows.indices,
        routed.shares,
        (
            layer.post_mlp_norm.weight,
            layer.post_experts_norm.weight,
            layer.post_feedforward_norm.weight,
            following.weight,
        ),
        (layer.encoder_scalar, layer.decoder_scalar),
        encoded,
        layer.router_eps,
    )
