"""An upper estimate of the memory that a pass allocates and frees again, from the dimensions.

Plain Python. The estimate adds up the largest tensors that exist at the same time in
`engine/model/` and `engine/denoise/denoising_step.py`. A test compares it with real passes on a
CPU. `element_bytes` is the size of an element of the weights' type.
"""

from dataclasses import dataclass

from engine.sizing.chunks import (
    ATTENTION_SPLITS,
    TRUNCATED_ROWS,
    VOCAB_CHUNK,
    VOCAB_GROUP,
)
from engine.sizing.dimensions import Dimensions, LayerShape, Tower

RELEASED_STEPS = 48  # maximum denoising steps of a block, unless the checkpoint sets another number
_STEP_BYTES = 12  # noise of one position and step: a token id and a uniform number


@dataclass(frozen=True)
class PassShape:
    """The size of the largest pass that the scheduler makes."""

    encoded: int  # tokens of prompts
    canvases: int
    speculates: bool  # each canvas may be followed by its draft and the next block's canvas
    context: int  # tokens that the encoded ones may attend to

    def canvas_rows(self, canvas_length: int) -> int:
        """Returns the number of rows for which logits are computed."""
        return self.canvases * canvas_length * (2 if self.speculates else 1)

    def rows(self, canvas_length: int) -> int:
        """Returns the number of all rows."""
        return self.encoded + self.canvases * canvas_length * (3 if self.speculates else 1)


def activation_bytes(
    dimensions: Dimensions, shape: PassShape, *, element_bytes: int, cuda: bool
) -> int:
    """Returns the most bytes that a pass needs at any moment, including the canvases' state."""
    d = dimensions
    canvas_rows = shape.canvas_rows(d.canvas_length)
    state = canvas_rows * (2 * d.hidden_size * element_bytes + (RELEASED_STEPS + 1) * _STEP_BYTES)
    network = network_bytes(d, shape.rows(d.canvas_length), element_bytes)
    masks = _mask_bytes(d, shape.encoded, shape.context, element_bytes)
    tail = _tail_bytes(d, canvas_rows, element_bytes, cuda=cuda)
    tower = 0 if d.tower is None else _tower_bytes(d.tower, d.image_tokens, element_bytes)
    splits = split_bytes(d) if cuda else 0
    return state + max(network + masks + splits, tail, tower)


def network_bytes(dimensions: Dimensions, rows: int, element_bytes: int) -> int:
    """Returns the bytes that one layer needs for this number of rows.

    The layer's input and the rotary embeddings are included.
    """
    d = dimensions
    # With PyTorch's operations the experts' rows, products and sums. With Triton's kernels their
    # rows and products, and the dense MLP's.
    chosen = max(
        d.experts_per_token * (4 * d.hidden_size + 4 * d.expert_size),
        d.experts_per_token * (2 * d.hidden_size + 3 * d.expert_size)
        + (2 * d.hidden_size + 3 * d.mlp_size),
    )
    # The merged product, the normed and rotated queries, keys and values, the intermediate results
    # of rotating, and the output.
    attended = max((5 * d.query_heads + 6 * layer.kv_heads) * layer.head_size for layer in d.layers)
    elements = 6 * d.hidden_size + max(chosen, attended, 5 * d.mlp_size) + rope_elements(d)
    # The router's scores are float32.
    return rows * (elements * element_bytes + 12 * d.experts)


def rope_elements(dimensions: Dimensions) -> int:
    """Returns the elements of the rotary embeddings of one row: cos and sin for each head size."""
    return sum(2 * size for size in {layer.head_size for layer in dimensions.layers})


def split_bytes(dimensions: Dimensions) -> int:
    """Returns the bytes of the sums that a GPU's attention writes for one canvas, in 32 bits.

    Larger passes need no more in the released model. There are sums only while all programs, each
    with 64 rows of a head, are at most as many as the processors: 256 would reach this size.
    """
    d = dimensions
    widest = max(layer.head_size for layer in d.layers)
    return ATTENTION_SPLITS * d.canvas_length * d.query_heads * (widest + 2) * 4


def _mask_bytes(dimensions: Dimensions, tokens: int, context: int, element_bytes: int) -> int:
    """Returns the bytes of the encoded tokens' attention masks.

    There is one mask for each window, and a copy that is passed to attention. The copy is repeated
    for the query heads that share a key-value head, as bool and then in the queries' type. The
    masks of full layers grow with the context. Where Triton's attention is used, only passes with
    an image have masks.
    """

    def visible(layer: LayerShape) -> int:
        return context if layer.window is None else min(context, layer.window - 1 + tokens)

    kept = sum(
        tokens * visible(layer) * (1 if layer.window is None else 10)
        for layer in {layer.window: layer for layer in dimensions.layers}.values()
    )
    repeated = max(
        dimensions.query_heads // layer.kv_heads * tokens * visible(layer)
        for layer in dimensions.layers
    )
    return kept + repeated * (1 + element_bytes)


def _tail_bytes(dimensions: Dimensions, rows: int, element_bytes: int, *, cuda: bool) -> int:
    d = dimensions
    group = min(VOCAB_GROUP, d.vocab_size & -d.vocab_size)
    groups = d.vocab_size // group
    soft = rows * d.hidden_size * (8 + 2 * element_bytes)
    if not cuda:  # a chunk's logits, raw and softcapped, and its probabilities
        chunk = min(VOCAB_CHUNK, d.vocab_size)
        gathered = rows * (d.hidden_size * element_bytes + 4 * group * 8)
        return rows * chunk * (8 + 2 * element_bytes) + soft + rows * groups * 36 + gathered
    logits = rows * d.vocab_size * element_bytes
    # Logits and float32 probabilities of a canvas that draws from its likeliest tokens, after the
    # logits of all canvases are gone.
    truncated = min(d.canvas_length, TRUNCATED_ROWS) * d.vocab_size * (element_bytes + 4)
    statistics = rows * groups * 4 * 4  # four in 32 bits
    return max(logits, truncated) + statistics + soft


def _tower_bytes(tower: Tower, tokens: int, element_bytes: int) -> int:
    """Returns the bytes that one image needs: its patches, one layer and attention's scores.

    The scores are counted although attention may not store them.
    """
    patches = tokens * tower.pooling**2
    layer = 6 * tower.hidden_size + 4 * tower.query_heads * tower.head_size + 3 * tower.mlp_size
    scores = tower.query_heads * patches**2
    return (patches * layer + scores) * element_bytes + 3 * tower.patch_size**2 * patches * 4
