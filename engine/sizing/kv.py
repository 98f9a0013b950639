"""Compute the size of a KV cache. Both the cache itself and the memory plan use this arithmetic.

Plain Python, without tensors. Lengths are in tokens.
"""

from engine.sizing.dimensions import LayerShape

# The most tokens that can be cut off a kept prefix's end once sliding layers have dropped its
# beginning. The next turn of a conversation differs from the last prompt by ten tokens: those that
# begin the model's turn.
SLACK_TOKENS = 64


def kept_tokens(window: int | None, capacity: int, slack: int) -> int:
    """Returns the most tokens that a layer with this window keeps."""
    return capacity if window is None else window - 1 + slack


def stored_shape(
    layer: LayerShape, capacity: int, pass_tokens: int, slack: int
) -> tuple[int, int, int, int]:
    """Returns the shape of the tensor that holds a layer's keys and values.

    It is [2, K, kept tokens + one pass' tokens, d], with K key-value heads of size d.
    """
    kept = min(capacity, kept_tokens(layer.window, capacity, slack))
    return 2, layer.kv_heads, kept + pass_tokens, layer.head_size


def scratch_elements(layers: tuple[LayerShape, ...], capacity: int, slack: int) -> int:
    """Returns the elements of the buffer through which a sliding layer's window is moved.

    It holds what the largest sliding layer keeps. Without sliding layers it is empty.
    """
    return max(
        (
            2 * layer.kv_heads * kept_tokens(layer.window, capacity, slack) * layer.head_size
            for layer in layers
            if layer.window is not None
        ),
        default=0,
    )


def cache_elements(
    layers: tuple[LayerShape, ...], *, capacity: int, pass_tokens: int, slack: int = SLACK_TOKENS
) -> int:
    """Returns the elements of one whole cache."""
    stored = 0
    for layer in layers:
        two, heads, tokens, size = stored_shape(layer, capacity, pass_tokens, slack)
        stored += two * heads * tokens * size
    return stored + scratch_elements(layers, capacity, slack)


def pass_tokens(*, context: int, canvas: int, prefill_chunk: int, image_tokens: int) -> int:
    """Returns the most tokens of one sequence in one pass.

    These are the encoded tokens, or a draft, and the canvas behind them. An image is encoded as a
    whole, so it can make a chunk longer.
    """
    return max(min(max(prefill_chunk, image_tokens), context), canvas) + canvas
