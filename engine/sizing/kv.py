"""How large a KV cache is: the arithmetic that the tensors and the plan have in common.

Plain Python, without tensors. Lengths are in tokens.
"""

from engine.sizing.dimensions import LayerShape

# How far a kept prefix can be cut back where sliding layers have lost its beginning. The next turn
# of a conversation differs from the last prompt in how the model's turn begins, by ten tokens.
SLACK_TOKENS = 64


def kept_tokens(window: int | None, capacity: int, slack: int) -> int:
    """How many tokens a layer with this window may hold."""
    return capacity if window is None else window - 1 + slack


def stored_shape(
    layer: LayerShape, capacity: int, pass_tokens: int, slack: int
) -> tuple[int, int, int, int]:
    """Of a layer's keys and values: [2, K, stored tokens and a pass' tokens, d]."""
    kept = min(capacity, kept_tokens(layer.window, capacity, slack))
    return 2, layer.kv_heads, kept + pass_tokens, layer.head_size


def scratch_elements(layers: tuple[LayerShape, ...], capacity: int, slack: int) -> int:
    """What the widest sliding layer keeps, which is moved when the window does."""
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
    """All elements of one cache."""
    stored = 0
    for layer in layers:
        two, heads, tokens, size = stored_shape(layer, capacity, pass_tokens, slack)
        stored += two * heads * tokens * size
    return stored + scratch_elements(layers, capacity, slack)


def pass_tokens(*, context: int, canvas: int, prefill_chunk: int, image_tokens: int) -> int:
    """Most tokens of one sequence in one pass: what is encoded, or a draft, and a canvas behind.

    An image is encoded as a whole, so that it may make the chunk longer.
    """
    return max(min(max(prefill_chunk, image_tokens), context), canvas) + canvas
