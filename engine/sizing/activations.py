"""What a pass allocates and frees again, at most: an estimate from above, from the dimensions.

Plain Python. It follows the largest tensors that live at the same time in `engine/model/` and
`engine/denoise/denoising_step.py`; a test measures real passes on a CPU against it. Bytes are for
the weights' type, `element_bytes` an element.

Letters: T encoded tokens, R rows, S keys, C canvas, V vocabulary, D hidden size, d head size.
"""

from dataclasses import dataclass

from engine.sizing.chunks import GATHERED_ROWS, VOCAB_CHUNK, VOCAB_GROUP
from engine.sizing.dimensions import Dimensions, LayerShape, Tower

RELEASED_STEPS = 48  # the most denoising steps of a block, unless a checkpoint says otherwise
_STEP_BYTES = 12  # a canvas' token and a uniform number


@dataclass(frozen=True)
class PassShape:
    """The largest pass that the scheduler makes."""

    encoded: int  # tokens of prompts
    canvases: int
    bets: bool  # each canvas may have its draft and the next canvas behind it
    context: int

    def canvas_rows(self, canvas_length: int) -> int:
        """Rows that reach the vocabulary."""
        return self.canvases * canvas_length * (2 if self.bets else 1)

    def rows(self, canvas_length: int) -> int:
        """All rows."""
        return self.encoded + self.canvases * canvas_length * (3 if self.bets else 1)


def activation_bytes(
    dimensions: Dimensions, shape: PassShape, *, element_bytes: int, cuda: bool
) -> int:
    """At the pass' worst moment, the canvases' state included."""
    d = dimensions
    canvas_rows = shape.canvas_rows(d.canvas_length)
    state = canvas_rows * (2 * d.hidden_size * element_bytes + (RELEASED_STEPS + 1) * _STEP_BYTES)
    network = network_bytes(d, shape.rows(d.canvas_length), element_bytes)
    masks = _mask_bytes(d, shape.encoded, shape.context, element_bytes)
    tail = _tail_bytes(d, canvas_rows, element_bytes, cuda=cuda)
    tower = 0 if d.tower is None else _tower_bytes(d.tower, d.image_tokens, element_bytes)
    return state + max(network + masks, tail, tower)


def network_bytes(dimensions: Dimensions, rows: int, element_bytes: int) -> int:
    """Of one layer at work on so many rows, its input and the rotary embeddings included."""
    d = dimensions
    chosen = d.experts_per_token * (4 * d.hidden_size + 4 * d.expert_size)
    # Merged product, normed and rotated queries, keys and values, what rotating takes, the result.
    attended = max((5 * d.query_heads + 6 * layer.kv_heads) * layer.head_size for layer in d.layers)
    ropes = sum(2 * size for size in {layer.head_size for layer in d.layers})
    elements = 6 * d.hidden_size + max(chosen, attended, 5 * d.mlp_size) + ropes
    # The router's scores are float32.
    return rows * (elements * element_bytes + 12 * d.experts)


def _mask_bytes(dimensions: Dimensions, tokens: int, context: int, element_bytes: int) -> int:
    """Masks of encoded tokens: one for each window, and the one that attention is given.

    That is one repeated for the query heads that share a key-value head, as bool and then in the
    type of the queries; of the full layers it grows with the context. Where Triton's attention
    serves, only passes with an image have any.
    """

    def seen(layer: LayerShape) -> int:
        return context if layer.window is None else min(context, layer.window - 1 + tokens)

    kept = sum(
        tokens * seen(layer) * (1 if layer.window is None else 10)
        for layer in {layer.window: layer for layer in dimensions.layers}.values()
    )
    given = max(
        dimensions.query_heads // layer.kv_heads * tokens * seen(layer)
        for layer in dimensions.layers
    )
    return kept + given * (1 + element_bytes)


def _tail_bytes(dimensions: Dimensions, rows: int, element_bytes: int, *, cuda: bool) -> int:
    d = dimensions
    group = min(VOCAB_GROUP, d.vocab_size & -d.vocab_size)
    groups = d.vocab_size // group
    soft = rows * d.hidden_size * (8 + 2 * element_bytes)
    if not cuda:  # a chunk's logits as they are multiplied, capped, and as probabilities
        chunk = min(VOCAB_CHUNK, d.vocab_size)
        gathered = rows * (d.hidden_size * element_bytes + 4 * group * 8)
        return rows * chunk * (8 + 2 * element_bytes) + soft + rows * groups * 36 + gathered
    logits = rows * d.vocab_size * element_bytes
    # Four statistics in 32 bits, then the masses in 64 bits and their running sum.
    statistics = rows * groups * (4 * 4 + 2 * 8)
    gathered = min(rows, GATHERED_ROWS) * group * d.hidden_size * element_bytes
    return logits + statistics + soft + gathered


def _tower_bytes(tower: Tower, tokens: int, element_bytes: int) -> int:
    """One image: patches, a layer at work on them, and attention's scores as if they were held."""
    patches = tokens * tower.pooling**2
    layer = 6 * tower.hidden_size + 4 * tower.query_heads * tower.head_size + 3 * tower.mlp_size
    scores = tower.query_heads * patches**2
    return (patches * layer + scores) * element_bytes + 3 * tower.patch_size**2 * patches * 4
