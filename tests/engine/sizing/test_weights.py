"""The computed sizes of weights, compared with a real network and with published checkpoints."""

import pytest
import torch

from bench.random_model import Shape, new_random_model, write_random_model
from bench.roofline import released
from engine.config import UNQUANTIZED, EngineConfig, Formats
from engine.loading import build_denoiser
from engine.model.checkpoint import find_dimensions
from engine.model.diffusion_gemma import DiffusionGemma, ModelConfig
from engine.model.vision import Vision, VisionConfig
from engine.sizing.dimensions import MODELOPT_FILE, QUANTIZED_FILES, Dimensions
from engine.sizing.weights import weight_bytes
from engine.weights.quantization import QuantizedWeight
from tests.hub import use_hub
from tests.parity.tiny_models import SHAPES, write_seeing_model

QUANTIZABLE = Shape(hidden=64, mlp=96, head=32, full_head=32, expert=32)
LEAST = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}
FLOAT32 = {"formats": UNQUANTIZED, "element_bytes": 4}
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
    matches = [part for part, pieces in PARTS.items() if any(piece in name for piece in pieces)]
    return matches[0] if matches else "router and norms"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_unquantised_weights_are_counted_to_the_byte(shape):
    config = new_random_model(shape).config
    with torch.device("meta"):
        model = DiffusionGemma(ModelConfig.from_transformers(config)).float()
    expected = dict.fromkeys(weight_bytes(Dimensions.of(config.to_dict()), **FLOAT32), 0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        expected[part_of(name)] += tensor.nbytes
    computed = weight_bytes(Dimensions.of(config.to_dict()), **FLOAT32)
    assert {**computed, "vision": 0} == expected


def test_the_vision_tower_is_counted_to_the_byte(tmp_path):
    shape = SHAPES["one-kv-head"]
    write_seeing_model(tmp_path, shape)
    config = new_random_model(shape).config
    vision_config = VisionConfig.find(tmp_path, config)
    vision = Vision(vision_config, device=torch.device("cpu"), dtype=torch.float32)
    expected = sum(tensor.nbytes for tensor in vision.tensors().values())
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
def test_the_released_model_has_the_size_of_its_published_checkpoints(
    experts, linears, published_gb
):
    parts = weight_bytes(released(), Formats(experts, linears), element_bytes=2)
    assert sum(parts.values()) / 1e9 == pytest.approx(published_gb, rel=0.01)


def test_a_format_changes_only_its_own_parts():
    whole = weight_bytes(released(), UNQUANTIZED, element_bytes=2)
    experts = weight_bytes(released(), Formats(experts="int4"), element_bytes=2)
    linears = weight_bytes(released(), Formats(linears="int8"), element_bytes=2)
    assert {part for part in whole if experts[part] != whole[part]} == {"experts"}
    assert {part for part in whole if linears[part] != whole[part]} == {
        "attention",
        "dense MLP",
    }


@pytest.mark.parametrize("rest", ["none", "int8", "fp8"])
def test_all_other_matrices_are_counted_to_the_byte_with_vision(tmp_path, rest):
    write_seeing_model(tmp_path, SHAPES["one-kv-head"])
    config = EngineConfig(
        model=str(tmp_path), device="cpu", quantize_rest=rest, quantized_cache=False
    )
    denoiser = build_denoiser(config)
    expected = dict.fromkeys(weight_bytes(find_dimensions(str(tmp_path)), **FLOAT32), 0)
    for name, weight in held(denoiser.model):
        expected[part_of(name)] += weight.nbytes
    expected["vision"] = sum(weight.nbytes for _name, weight in held(denoiser.vision))
    dimensions = find_dimensions(str(tmp_path))
    assert weight_bytes(dimensions, Formats(rest=rest), element_bytes=4) == expected


def held(model):
    """Yields the name and value of each weight that comes from a file, quantised or not."""
    for prefix, module in model.named_modules():
        for name, weight in vars(module).items():
            if isinstance(weight, QuantizedWeight):
                yield f"{prefix}.{name}".removeprefix("."), weight
    yield from model.state_dict().items()


@pytest.mark.parametrize("experts", ["none", "int8", "int4", "fp8"])
@pytest.mark.parametrize("linears", ["none", "int8", "int4", "fp8"])
def test_quantised_weights_are_counted_to_the_byte(tmp_path, experts, linears):
    write_random_model(tmp_path, QUANTIZABLE)
    options = {"quantize_experts": experts, "quantize_linears": linears}
    config = EngineConfig(model=str(tmp_path), device="cpu", quantized_cache=False, **options)
    model = build_denoiser(config).model
    formats = Formats(experts, linears)
    computed = weight_bytes(find_dimensions(str(tmp_path)), formats, element_bytes=4)
    assert computed["experts"] == sum(
        layer.experts.gate_up.nbytes + layer.experts.down.nbytes for layer in model.layers
    )
    assert computed["attention"] == sum(
        layer.attention.qkv.nbytes + layer.attention.out.nbytes for layer in model.layers
    )
    assert computed["dense MLP"] == sum(
        layer.mlp.gate_up.nbytes + layer.mlp.down.nbytes for layer in model.layers
    )
    conditioning = model.self_conditioning
    tensors = [conditioning.mlp.gate_up, conditioning.mlp.down, conditioning.pre_norm.weight]
    assert computed["self-conditioning"] == sum(tensor.nbytes for tensor in tensors)


def test_a_quantised_checkpoint_has_the_size_of_its_files(tmp_path):
    write_random_model(tmp_path, QUANTIZABLE)
    (tmp_path / MODELOPT_FILE).write_text("{}")
    computed = weight_bytes(find_dimensions(str(tmp_path)), **FLOAT32)
    assert computed == {"as stored": (tmp_path / "model.safetensors").stat().st_size}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with use_hub(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", [*QUANTIZED_FILES, None])
def test_a_file_on_the_hub_can_mark_a_checkpoint_as_quantised(hub, tmp_path, name, listed):
    folder = write_random_model(tmp_path / "model", QUANTIZABLE)
    if name is not None:
        (folder / name).write_text("{}")
    hub.add("owner/name", folder)
    hub.broken = "" if listed else "tree"
    dimensions = find_dimensions("owner/name")
    assert dimensions.quantized == (name is not None)
    assert dimensions.sized == (listed or name is None)
    assert "model.safetensors" not in hub.downloaded()


def test_the_size_of_a_quantised_checkpoint_is_unknown_without_its_files():
    elsewhere = Dimensions.of(
        {"model_type": "diffusion_gemma", "quantization_config": {}, "text_config": LEAST}
    )
    assert elsewhere.quantized
    assert not elsewhere.sized
