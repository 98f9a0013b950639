"""The tiny random models for which parity is tested."""

from pathlib import Path

from transformers import Gemma4ImageProcessorPil

from bench.random_model import Shape, write_random_model

SHAPES = {
    "window-shorter-than-the-prompt": Shape(),
    "window-longer-than-the-prompt": Shape(window=64, kv_heads=4, full_kv_heads=2),
    "one-kv-head": Shape(layers="sf", kv_heads=1, stability_threshold=2),
    "many-experts": Shape(
        layers="sff", experts=16, per_token=5, full_kv_heads=4, stability_threshold=0
    ),
    "one-expert-a-token": Shape(layers="f", experts=3, per_token=1, canvas=24),
}
# An image has more tokens than a window, or fewer.
SEEING_SHAPES = {
    "window-shorter-than-an-image": Shape(),
    "window-longer-than-the-images": Shape(layers="sf", window=256),
}
IMAGE, BEGIN_OF_IMAGE, END_OF_IMAGE = 3, 4, 5  # token ids in all of these models


def write_seeing_model(folder: Path, shape: Shape) -> Path:
    """Write a checkpoint of this shape that accepts images of up to 70 tokens."""
    write_random_model(folder, shape)
    write_image_processor(folder)
    return folder


def write_image_processor(folder: Path, *, patch_size: int = 2) -> None:
    Gemma4ImageProcessorPil(patch_size=patch_size, max_soft_tokens=70).save_pretrained(folder)
