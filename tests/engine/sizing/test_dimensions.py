"""The dimensions read from a config.json equal those that Transformers reads from it."""

import json
from dataclasses import fields

import pytest
from transformers import AutoConfig, DiffusionGemmaConfig

from bench.random_model import new_random_model
from bench.roofline import RELEASED_MODEL
from engine.config import DEMO_MODEL_PATH
from engine.model.diffusion_gemma import ModelConfig
from engine.sizing.dimensions import Dimensions, DimensionsError, known_dimensions, read_dimensions
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
    assert demo.in_folder(DEMO_MODEL_PATH).image_tokens == 0
    (tmp_path / "processor_config.json").write_text("{}")
    assert demo.in_folder(tmp_path).image_tokens > 0


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


def test_a_file_that_is_not_json_is_refused_with_its_name(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DimensionsError, match=r"config\.json"):
        read_dimensions(tmp_path / "config.json")
