"""Checkpoints that are refused with a message that says why, and checkpoints that are loaded."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.random_model import write_random_model
from engine.model.checkpoint import (
    CheckpointError,
    download_weights,
    find_checkpoint,
    find_dimensions,
    load_model,
)
from engine.model.diffusion_gemma import UnsupportedModelError
from tests.hub import use_hub
from tests.parity.tiny_models import SHAPES

CODE = ("app", "engine", "bench", "demo")
AUTOMATIC = re.compile(r"\bAuto\w+\.from_pretrained\((?:[^()]|\([^()]*\))*\)")
PREFIX = "model.decoder.layers.0."


@pytest.fixture
def folder(tmp_path):
    return write_random_model(tmp_path, SHAPES["one-kv-head"])


def change_config(folder, **changes):
    """Set keys of config.json, or of its text_config for keys that belong there."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for key, value in changes.items():
        text = key in config["text_config"] or key == "final_logit_softcapping"  # is not written
        (config["text_config"] if text else config)[key] = value
    file.write_text(json.dumps(config))


def rope(**changes):
    """Returns the parameters of both rotary embeddings, changed for full attention."""
    plain = {"rope_type": "default", "rope_theta": 10_000.0}
    return {"sliding_attention": plain, "full_attention": {**plain, **changes}}


def change_weights(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def load(folder):
    return load_model(find_checkpoint(str(folder)), device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("written", [{}, {"pad_token_id": None}, {"pad_token_id": 4}])
def test_padding_that_generation_config_does_not_name_is_that_of_the_config(folder, written):
    change_config(folder, pad_token_id=3)
    file = folder / "generation_config.json"
    values = json.loads(file.read_text())
    del values["pad_token_id"]
    file.write_text(json.dumps({**values, **written}))
    assert find_checkpoint(str(folder)).generation["pad_token_id"] == (
        4 if written.get("pad_token_id") else 3
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_activation": "relu"}, "hidden_activation is 'relu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'"),
        ({"num_experts": None}, "num_experts is None"),
        ({"canvas_length": None}, "canvas_length is None"),
        ({"hidden_size": "128"}, "hidden_size is '128'; it must be a whole number above 0"),
        ({"final_logit_softcapping": -1}, "final_logit_softcapping is -1; it must be a number"),
        ({"rope_parameters": {}}, r"rope_parameters\.sliding_attention is None; it must be an obj"),
        ({"rope_parameters": rope(rope_theta="x")}, r"full_attention\.rope_theta is 'x'"),
        ({"rope_parameters": rope(rope_type=None)}, r"full_attention\.rope_type is None"),
        (
            {"rope_parameters": rope(partial_rotary_factor=2)},
            r"partial_rotary_factor is 2; it must",
        ),
    ],
)
def test_an_unsupported_config_is_refused_and_its_key_named(folder, changes, named):
    change_config(folder, **changes)
    with pytest.raises(UnsupportedModelError, match=named):
        find_checkpoint(str(folder))


def test_code_in_a_checkpoint_is_never_run(folder, tmp_path):
    trace = tmp_path / "trace"
    (folder / "configuration.py").write_text(f"open({str(trace)!r}, 'w')\nclass Config: pass\n")
    change_config(folder, auto_map={"AutoConfig": "configuration.Config"})
    load(folder)
    assert not trace.exists()


def test_every_automatic_class_of_transformers_is_forbidden_to_run_code():
    root = Path(__file__).parents[3]
    sources = [file for name in CODE for file in (root / name).rglob("*.py")]
    calls = [call for file in sources for call in AUTOMATIC.findall(file.read_text())]
    assert len(calls) >= 5
    assert all("trust_remote_code=False" in call for call in calls)


def test_every_obstacle_of_a_config_is_named_at_once(folder):
    change_config(folder, hidden_activation="relu", attention_bias=True)
    with pytest.raises(UnsupportedModelError, match=r"hidden_activation.*attention_bias"):
        find_checkpoint(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"rms_norm_eps": "tiny"},
        {"tie_word_embeddings": "no"},
        {"dtype": "floot16"},
        {"rope_parameters": "default"},
        {"image_token_id": "3"},
    ],
)
def test_a_config_that_transformers_refuses_is_named_in_one_line(folder, changes):
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=r"config\.json: ") as caught:
        find_checkpoint(str(folder))
    assert next(iter(changes.values())) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "processor_config.json", "w4_meta.json"]
)
def test_a_damaged_json_file_is_named_in_one_line(folder, name):
    (folder / name).write_text('{"a": ')
    with pytest.raises(CheckpointError, match=rf"{name} is not JSON.*Download it again") as caught:
        find_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_missing_json_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        find_checkpoint(str(folder))


def test_an_adapter_is_refused_before_its_weights_are_read(folder):
    (folder / "adapter_config.json").write_text("{}")
    for find in (find_checkpoint, find_dimensions):
        with pytest.raises(CheckpointError, match="merge it first, for example with peft's"):
            find(str(folder))


def test_a_config_is_refused_before_weight_files_are_looked_for(folder):
    change_config(folder, attention_bias=True)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModelError):
        find_checkpoint(str(folder))


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UnsupportedModelError, match="'gpt2'; supported: 'diffusion_gemma'"):
        find_checkpoint(str(tmp_path))


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "nowhere"])
def test_a_missing_path_is_named(model):
    with pytest.raises(CheckpointError, match=model):
        find_checkpoint(model)


def test_a_missing_tensor_is_listed(folder):
    change_weights(folder, lambda tensors: tensors.pop(PREFIX + "mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"1 missing: .*layers\.0\.mlp\.up_proj"):
        load(folder)


def test_an_unexpected_tensor_is_listed(folder):
    change_weights(folder, lambda tensors: tensors.update(extra=torch.ones(1)))
    with pytest.raises(CheckpointError, match="1 unexpected: extra"):
        load(folder)


def test_a_mis_shaped_tensor_is_listed_with_both_shapes(folder):
    name = PREFIX + "router.scale"
    change_weights(folder, lambda tensors: tensors.update({name: torch.ones(7)}))
    with pytest.raises(CheckpointError, match=r"router\.scale \(\(7,\) instead of \(48,\)\)"):
        load(folder)


def test_missing_weight_files_are_listed(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"missing: model\.safetensors"):
        load(folder)


def test_a_checkpoint_on_the_hub_is_downloaded_without_files_that_hold_no_weights(
    folder, tmp_path, monkeypatch
):
    expected = load(folder).state_dict()
    published = shutil.copytree(folder, tmp_path / "published")
    (published / "earlier.safetensors").write_bytes(b"no part of the model")
    with use_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.add("owner/name", published, "v1")
        checkpoint = find_checkpoint("owner/name", revision="v1")
        assert "model.safetensors" not in hub.downloaded()
        download_weights(checkpoint)
        assert "earlier.safetensors" not in hub.downloaded()
    model = load_model(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_sharded_checkpoint_with_encoder_names_loads_the_same_weights(folder):
    whole = load(folder).state_dict()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    renamed = {
        name
        if "layer_scalar" in name or "self_conditioning" in name
        else name.replace("model.decoder.", "model.encoder.language_model."): tensor
        for name, tensor in tensors.items()
    }
    half = len(renamed) // 2
    parts = {"a.safetensors": list(renamed)[:half], "b.safetensors": list(renamed)[half:]}
    for file, names in parts.items():
        save_file({name: renamed[name] for name in names}, folder / file)
    weight_map = {name: file for file, names in parts.items() for name in names}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for name, tensor in load(folder).state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_progress_rises_to_the_bytes_of_all_tensors(folder):
    progress = []
    load_model(
        find_checkpoint(str(folder)),
        device=torch.device("cpu"),
        dtype=torch.float32,
        on_progress=lambda loaded, total: progress.append((loaded, total)),
    )
    assert progress == sorted(progress)
    assert progress[-1][0] == sum(
        t.nbytes for t in load_file(folder / "model.safetensors").values()
    )
    assert progress[-1][0] <= progress[-1][1]
