"""Questions to the demo model whose answers fill as many blocks as a test needs."""

import json

from engine.config import DEMO_MODEL_PATH

CANVAS: int = json.loads((DEMO_MODEL_PATH / "config.json").read_text())["canvas_length"]


def last_number(blocks: int) -> int:
    """Returns up to which number the model counts in so many blocks.

    A number and the comma behind it are two tokens. Half of the last block is filled.
    """
    return (2 * blocks - 1) * CANVAS // 4


def count(blocks: int) -> str:
    """Returns the question."""
    return f"Count to {last_number(blocks)}"


def counted(blocks: int) -> str:
    """Returns the right answer."""
    return ", ".join(map(str, range(1, last_number(blocks) + 1)))
