"""The weights' sizes against those of a network that is there, and against published ones."""

import pytest
import torch

from bench.random_model import new_random_model
from bench.roofline import released
from engine.dimensions import Dimensions
from engine.model.diffusion_gemma import DiffusionGemma, ModelConfig
from engine.model.vision import Vision, VisionConfig
from engine.weight_size import weight_bytes
from tests.parity.tiny_models import SHAPES, write_seeing_model

FLOAT32 = {"experts": "none", "linears": "none", "element_bytes": 4}
PARTS = {
    "experts": (".experts.",),
    "attention": (".attention.qkv", ".attention.out"),
    "dense MLP": (".mlp.gate_up", ".mlp.down"),
    "embedding and lm_head": ("embedding",),
    "self-conditioning": ("self_conditioning.",),
}


def part_of(name):
    if name.startswith("self_conditioning."):
        return "self-conditioning"
    found = [part for part, places in PARTS.items() if any(place in name for place in places)]
    return found[0] if found else "router and norms"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_unquantised_weights_are_counted_to_the_byte(shape):
    config = new_random_model(shape).config
    with torch.device("meta"):
        model = DiffusionGemma(ModelConfig.from_transformers(config)).float()
    expected = dict.fromkeys(weight_bytes(Dimensions.of(config.to_dict()), **FLOAT32), 0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        expected[part_of(name)] += tensor.nbytes
    found = weight_bytes(Dimensions.of(config.to_dict()), **FLOAT32)
    assert {**found, "vision": 0} == expected


def test_the_vision_tower_is_counted_to_the_byte(tmp_path):
    shape = SHAPES["one-kv-head"]
    write_seeing_model(tmp_path, shape)
    config = new_random_model(shape).config
    found = VisionConfig.find(tmp_path, config)
    vision = Vision(found, device=torch.device("cpu"), dtype=torch.float32)
    expected = sum(tensor.nbytes for tensor in vision.places().values())
    assert weight_bytes(Dimensions.of(config.to_dict()), **FLOAT32)["vision"] == expected


@pytest.mark.parametrize(
    ("experts", "linears", "published_gb"),
    [
        ("none", "none", 51.6),
        ("fp8", "fp8", 27.2),
        ("int8", "int8", 27.2),
        ("int4", "none", 18.9),
        ("int4", "int8", 17.3),
    ],
)
def test_the_released_model_is_as_large_as_its_checkpoints(experts, linears, published_gb):
    parts = weight_bytes(released(), experts=experts, linears=linears, element_bytes=2)
    assert sum(parts.values()) / 1e9 == pytest.approx(published_gb, rel=0.01)


def test_a_format_touches_its_own_parts_alone():
    whole = weight_bytes(released(), experts="none", linears="none", element_bytes=2)
    experts = weight_bytes(released(), experts="int4", linears="none", element_bytes=2)
    linears = weight_bytes(released(), experts="none", linears="int8", element_bytes=2)
    assert {part for part in whole if experts[part] != whole[part]} == {"experts"}
    assert {part for part in whole if linears[part] != whole[part]} == {
        "attention",
        "dense MLP",
        "self-conditioning",
    }
