"""Single passes of a network without a request, for measurements and tests."""

from collections.abc import Sequence

from torch import Tensor

from engine.model.diffusion_gemma import DiffusionGemma
from engine.model.kv_cache import KVCache
from engine.model.rows import PassRows, Segment


def encode(model: DiffusionGemma, tokens: Tensor, cache: KVCache) -> Tensor:
    """Encode tokens [T] causally behind the entries of `cache`, and add them to it.

    Returns their last hidden states [T, D], which only token-by-token decoding needs.
    """
    hidden = encoder_states(model, [Segment(cache, tokens, causal=True)])
    cache.advance(tokens.shape[0])
    return hidden


def decode(
    model: DiffusionGemma, canvas: Tensor, soft_embeddings: Tensor | None, cache: KVCache
) -> Tensor:
    """Run one denoising pass. Returns the hidden states [C, D] of the canvas [C]."""
    return model.run([Segment(cache, canvas, causal=False)], soft_embeddings)


def encoder_states(model: DiffusionGemma, segments: Sequence[Segment]) -> Tensor:
    """Returns the last hidden states [R, D] of causal segments. Adds nothing to their caches.

    The engine never computes them, because the last layer needs only the keys and values of encoded
    rows.
    """
    rows = PassRows.of(segments)
    x = model.embed(rows.tokens)
    rows.put_images(x)
    ropes = model.ropes(rows.spans, x)
    norms = model.norms
    normed = norms[0].forward(x)
    for index, layer in enumerate(model.each_layer()):
        attended = model.attend(index, layer, normed, rows, ropes, skip_encoded=False)
        x, normed = layer.finish(x, attended, rows.encoded, norms[index + 1])
    return normed
