"""The tiny random models that parity is held on."""

from bench.random_model import Shape

SHAPES = {
    "window-shorter-than-the-prompt": Shape(),
    "window-longer-than-the-prompt": Shape(window=64, kv_heads=4, full_kv_heads=2),
    "one-kv-head": Shape(layers="sf", kv_heads=1, stability_threshold=2),
    "many-experts": Shape(
        layers="sff", experts=16, per_token=5, full_kv_heads=4, stability_threshold=0
    ),
    "one-expert-a-token": Shape(layers="f", experts=3, per_token=1, canvas=24),
}
