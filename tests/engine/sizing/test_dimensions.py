"""The dimensions read from a config.json equal those that Transformers reads from it."""

import json
import re
from dataclasses import fields

import pytest
from transformers import AutoConfig, DiffusionGemmaConfig

from bench.random_model import new_random_model
from engine.config import DEMO_MODEL_PATH
from engine.model.diffusion_gemma import ModelConfig
from engine.sizing.dimensions import (
    RELEASED_MODEL,
    Dimensions,
    DimensionsError,
    known_dimensions,
    read_dimensions,
)
from engine.sizing.model_files import ModelFiles, ModelFilesError
from engine.sizing.weight_files import with_files
from tests.parity.tiny_models import SHAPES

SHARED = {each.name for each in fields(Dimensions)} & {each.name for each in fields(ModelConfig)}
LEAST = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}


def assert_equal_dimensions(raw, config):
    dimensions, reference = Dimensions.of(raw), ModelConfig.from_transformers(config)
    assert {name: getattr(dimensions, name) for name in SHARED} == {
        name: getattr(reference, name) for name in SHARED
    }
    vision, tower = config.vision_config, dimensions.tower
    assert (tower.hidden_size, tower.mlp_size) == (vision.hidden_size, vision.intermediate_size)
    assert (tower.layers, tower.query_heads) == (
        vision.num_hidden_layers,
        vision.num_attention_heads,
    )
    assert (tower.kv_heads, tower.head_size) == (vision.num_key_value_heads, vision.head_dim)
    assert (tower.patch_size, tower.pooling) == (vision.patch_size, vision.pooling_kernel_size)
    assert tower.positions == vision.position_embedding_size
    assert tower.standardize == vision.standardize


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_saved_configuration_has_the_same_dimensions_as_in_transformers(tmp_path, shape):
    config = new_random_model(shape).config
    config.save_pretrained(tmp_path)
    assert_equal_dimensions(json.loads((tmp_path / "config.json").read_text()), config)
    assert_equal_dimensions(config.to_dict(), config)  # the worker passes this


@pytest.mark.parametrize(
    "text",
    [
        {},
        {"num_global_key_value_heads": 2, "global_head_dim": 128},
        {"layer_types": ["sliding_attention", "sliding_attention"], "num_hidden_layers": 2},
    ],
)
def test_values_missing_in_a_file_get_the_defaults_of_transformers(text):
    raw = {"model_type": "diffusion_gemma", "text_config": {**LEAST, **text}, "vision_config": {}}
    assert_equal_dimensions(raw, DiffusionGemmaConfig(**json.loads(json.dumps(raw))))


def test_the_demo_model_takes_no_images_without_an_image_processor(tmp_path):
    demo = read_dimensions(DEMO_MODEL_PATH / "config.json")
    raw = json.loads((DEMO_MODEL_PATH / "config.json").read_text())
    assert_equal_dimensions(raw, load_config(DEMO_MODEL_PATH))
    assert with_files(demo, ModelFiles(str(DEMO_MODEL_PATH))).image_tokens == 0
    (tmp_path / "processor_config.json").write_text("{}")
    assert with_files(demo, ModelFiles(str(tmp_path))).image_tokens > 0


def load_config(folder):
    return AutoConfig.from_pretrained(folder)


def test_the_released_model_is_known_without_a_network_by_its_name_in_any_case():
    known = known_dimensions(RELEASED_MODEL)
    assert known == known_dimensions(RELEASED_MODEL.lower())
    assert (known.hidden_size, known.experts, len(known.layers)) == (2816, 128, 30)
    assert known_dimensions("somebody/else") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"text_config": {**LEAST, "num_experts": None}}, "num_experts is None"),
    ],
)
def test_an_unsupported_model_is_refused_with_the_name_of_the_wrong_key(change, message):
    with pytest.raises(DimensionsError, match=message):
        Dimensions.of({"model_type": "diffusion_gemma", "text_config": LEAST, **change})


@pytest.mark.parametrize("value", ["128", None, 0, -1, 1.5, True, [128]])
@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "num_experts",
        "top_k_experts",
        "moe_intermediate_size",
        "sliding_window",
        "max_position_embeddings",
    ],
)
def test_a_number_that_no_network_can_have_is_refused_by_its_key(key, value):
    text = {**LEAST, key: value}
    with pytest.raises(DimensionsError, match=rf"text_config\.{key} is {re.escape(repr(value))};"):
        Dimensions.of({"model_type": "diffusion_gemma", "text_config": text})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"top_k_experts": 5}, r"text_config\.top_k_experts is 5; it must be at most 4"),
        ({"layer_types": ["full_attention"]}, r"layer_types .* for each of 30 layers"),
        ({"layer_types": ["banded"] * 30}, r"layer_types .* 'sliding_attention' or"),
        ({"layer_types": "full_attention"}, "layer_types is 'full_attention'"),
        ({"per_layer_config": []}, r"per_layer_config is \[\]; it must be an object"),
        ({"per_layer_config": {"99": {}}}, "per_layer_config has 99; there are layers 0 to 29"),
        ({"per_layer_config": {"x": {}}}, "per_layer_config has x"),
        ({"per_layer_config": {"2": 5}}, r"per_layer_config\.2 is 5; it must be an object"),
        ({"per_layer_config": {"2": {"head_dim": "a"}}}, r"per_layer_config\.2\.head_dim is 'a'"),
        ({"num_key_value_heads": 3}, "layer 0 has 8 query heads, 3 key-value heads"),
        ({"head_dim": 17}, "heads of size 17"),
    ],
)
def test_values_that_contradict_each_other_are_refused_by_their_keys(text, message):
    with pytest.raises(DimensionsError, match=message):
        Dimensions.of({"model_type": "diffusion_gemma", "text_config": {**LEAST, **text}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text_config", 5),
        ("vision_config", [1]),
        ("quantization_config", "awq"),
        ("canvas_length", "32"),
    ],
)
def test_a_part_of_another_type_is_refused_by_its_key(key, value):
    raw = {"model_type": "diffusion_gemma", "text_config": LEAST, key: value}
    with pytest.raises(DimensionsError, match=f"{key} is {re.escape(repr(value))}; it must be a"):
        Dimensions.of(raw)


def test_a_file_that_is_not_json_is_refused_with_its_name(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFilesError, match=r"config\.json"):
        read_dimensions(tmp_path / "config.json")
