"""Tied tensors that a checkpoint holds several times, and damaged files."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.random_model import Shape, new_random_model, write_random_model
from engine.model.checkpoint import CheckpointError, find_checkpoint, load_model
from engine.model.weight_map import canonical
from tests.engine.sizing.test_model_files import POINTER
from tests.engine.weights.published_models import compressed_tensors, rewrite, store_fp8

DECODER, ENCODER = "model.decoder.", "model.encoder.language_model."
QUERIES = "layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path):
    return write_random_model(tmp_path / "model", Shape(layers="sf"))


def load(folder):
    return load_model(find_checkpoint(str(folder)), device=torch.device("cpu"), dtype=torch.float32)


def change(folder, more):
    """Add `more(tensors)` to the tensors of the folder's file."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, **more(tensors)}, file, metadata={"format": "pt"})


def encoder_copies(tensors):
    """Returns a copy of each tensor that the encoder shares, under the encoder's name."""
    return {
        name.replace(DECODER, ENCODER): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith(DECODER) and "layer_scalar" not in name and "conditioning" not in name
    }


def test_the_names_that_are_taken_for_one_weight_are_those_that_transformers_ties():
    model = new_random_model(Shape(layers="sf"))
    ties = model.get_expanded_tied_weights_keys(all_submodels=True)
    assert {canonical(name) for name in ties} == {canonical(source) for source in ties.values()}
    assert all(canonical(name) == canonical(source) for name, source in ties.items())
    untied = [name for name in model.state_dict() if name not in {*ties, *ties.values()}]
    assert any(name.endswith("layer_scalar") for name in untied)
    assert [canonical(name) for name in untied] == untied


def test_equal_copies_of_tied_tensors_are_accepted_and_change_nothing(folder):
    expected = load(folder).state_dict()

    def copies(tensors):
        embedding = tensors[f"{DECODER}embed_tokens.weight"].clone()
        return {**encoder_copies(tensors), "lm_head.weight": embedding}

    change(folder, copies)
    for name, tensor in load(folder).state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_copy_in_another_type_is_equal_if_its_values_are(folder):
    change(folder, lambda tensors: {f"{DECODER}{QUERIES}": tensors[DECODER + QUERIES].bfloat16()})
    change(folder, lambda tensors: {f"{ENCODER}{QUERIES}": tensors[DECODER + QUERIES].float()})
    load(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_differs_from_the_embedding_is_refused_by_name(folder, dtype):
    def head(tensors):
        head = tensors[f"{DECODER}embed_tokens.weight"].clone()
        head[-1, -1] += 1
        return {"lm_head.weight": head.to(dtype)}

    change(folder, head)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight and .*embed_tokens\.weight differ"):
        load(folder)


def test_encoder_and_decoder_that_differ_in_one_number_are_refused_by_name(folder):
    def merged(tensors):
        copies = encoder_copies(tensors)
        copies[ENCODER + QUERIES].view(-1)[-1] *= 1.001
        return copies

    change(folder, merged)
    with pytest.raises(CheckpointError, match=rf"({DECODER}|{ENCODER}){QUERIES} and .*{QUERIES}"):
        load(folder)


def test_a_copy_of_another_shape_is_refused_by_name(folder):
    change(folder, lambda tensors: {ENCODER + QUERIES: tensors[DECODER + QUERIES][:2].clone()})
    with pytest.raises(CheckpointError, match="but they are one weight of the model"):
        load(folder)


def test_quantised_copies_that_differ_in_their_scales_are_refused(tmp_path):
    folder = write_random_model(tmp_path, Shape(layers="sf", hidden=64, mlp=96, expert=32))
    fp8 = compressed_tensors("float-quantized", num_bits=8, type="float", strategy="channel")
    rewrite(folder, store_fp8, lambda _name: True, fp8)
    change(folder, encoder_copies)
    load(folder)
    scale = f"{ENCODER}layers.0.experts.0.down_proj.weight_scale"
    change(folder, lambda tensors: {scale: tensors[scale] * 2})
    with pytest.raises(CheckpointError, match=r"down_proj\.weight_scale and .*weight_scale"):
        load(folder)


MEASURE = """
import sys, torch
torch.set_num_threads(1)
from engine.model.checkpoint import find_checkpoint, load_model

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

load = lambda folder, report: load_model(find_checkpoint(folder), device=torch.device("cpu"),
                                         dtype=torch.bfloat16, on_progress=report)
load(sys.argv[1], lambda *_: None)
before, most = anonymous(), 0
def measure(*_):
    global most
    most = max(most, anonymous())
model = load(sys.argv[2], measure)
print(most - before, sum(tensor.nbytes for tensor in model.state_dict().values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_copies_are_compared_without_holding_them(folder, tmp_path):
    shape = Shape(layers="s" * 7 + "f", hidden=256, mlp=128, expert=64, experts=48)
    large = write_random_model(tmp_path / "large", shape)
    tensors = {n: t.bfloat16() for n, t in load_file(large / "model.safetensors").items()}
    save_file({**tensors, **encoder_copies(tensors)}, large / "model.safetensors")
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(large)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    most, kept = map(int, ran.stdout.split())
    assert most < 1.2 * kept, (most, kept)


def test_codes_without_their_quantisation_configuration_are_refused_by_name(folder):
    name = f"{DECODER}layers.1.mlp.up_proj.weight"
    change(folder, lambda tensors: {name: (100 * tensors[name]).to(torch.int8)})
    with pytest.raises(CheckpointError, match=r"need their quantization_config: .*up_proj.*int8"):
        load(folder)


@pytest.mark.parametrize(
    "name",
    [
        f"{DECODER}layers.0.self_attn.rotary_emb.inv_freq",
        f"{DECODER}rotary_emb.full_attention_inv_freq",
        "model.encoder.vision_tower.encoder.rotary_emb.inv_freq",
    ],
)
def test_stored_rotary_frequencies_are_ignored(folder, name):
    change(folder, lambda _: {name: torch.ones(8)})
    load(folder)


def test_shards_without_an_index_load_the_same_weights(folder):
    expected = load(folder).state_dict()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
        part = {name: tensors[name] for name in names}
        save_file(part, folder / f"model-0000{number}-of-00002.safetensors")
    for name, tensor in load(folder).state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (lambda data: data[:-100], r"is cut off: it has \d+ of \d+ bytes\. Download it again"),
        (lambda data: data[: len(data) // 2], "is cut off: it has"),
        (lambda data: data[:100], "is not a safetensors file, or it is damaged"),
        (lambda _: b"", "is not a safetensors file, or it is damaged"),
        (lambda _: struct.pack("<Q", 2) + b"[]", "is not a safetensors file, or it is damaged"),
        (lambda data: data + b"0", "is not a safetensors file, or it is damaged"),
        (lambda _: POINTER, "is a git-lfs pointer and not the file itself: run `git lfs pull`"),
    ],
)
def test_a_damaged_file_is_named_with_its_fault_in_one_line(folder, damaged, message):
    file = folder / "model.safetensors"
    file.write_bytes(damaged(file.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors {message}") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_one_damaged_shard_is_the_one_that_is_named(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: "ab"[index % 2] for index, name in enumerate(tensors)}
    for shard in "ab":
        save_file({n: tensors[n] for n in tensors if weight_map[n] == shard}, folder / shard)
    (folder / "b").write_bytes(POINTER)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="/b is a git-lfs pointer"):
        load(folder)


def test_a_folder_in_place_of_a_file_is_named(folder):
    (folder / "model.safetensors").rename(folder / "model.safetensors.index.json.old")
    (folder / "a").mkdir()
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "a"}}')
    with pytest.raises(CheckpointError, match="weight files are missing: a, which"):
        load(folder)
