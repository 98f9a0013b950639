"""Which of a checkpoint's files hold its weights, compared with Transformers' choice."""

import json

import pytest
from transformers.modeling_utils import _get_resolved_checkpoint_files

from engine.sizing.model_files import ModelFiles, ModelFilesError
from engine.sizing.weight_files import find_weights
from tests.hub import use_hub

INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def write(folder, *names, **index):
    """Write files of 7 bytes, and an index with these tensors if there are any."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"weights")
    if index:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def named(folder):
    return list(find_weights(ModelFiles(str(folder))))


def named_by_transformers(folder, explicit=None):
    files, _ = _get_resolved_checkpoint_files(
        str(folder),
        variant=None,
        gguf_file=None,
        use_safetensors=True,
        user_agent=None,
        is_remote_code=False,
        transformers_explicit_filename=explicit,
    )
    return sorted(file.removeprefix(f"{folder}/") for file in files)


@pytest.mark.parametrize(
    ("files", "index", "expected"),
    [
        (["model.safetensors", "earlier.safetensors"], {}, ["model.safetensors"]),
        (["model.safetensors", "a", "b"], {"x": "a", "y": "b"}, ["model.safetensors"]),
        (["model.safetensors"], {"x": "gone"}, ["model.safetensors"]),
        (["b", "a", "c"], {"x": "b", "y": "a", "z": "b"}, ["a", "b"]),
        (["parts/a", "b"], {"x": "parts/a"}, ["parts/a"]),
        ([*SHARDS, "model-00001-of-00005.safetensors"], {"x": SHARDS[0]}, [SHARDS[0]]),
    ],
)
def test_the_files_that_count_are_those_that_transformers_reads(tmp_path, files, index, expected):
    write(tmp_path, *files, **index)
    assert named(tmp_path) == named_by_transformers(tmp_path) == expected


@pytest.mark.parametrize("name", ["own.safetensors", "own.safetensors.index.json"])
def test_the_file_that_the_configuration_names_comes_first(tmp_path, name):
    write(tmp_path, "model.safetensors", "own.safetensors", "a")
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": name}))
    (tmp_path / "own.safetensors.index.json").write_text(
        '{"metadata": {}, "weight_map": {"x": "a"}}'
    )
    assert named(tmp_path) == named_by_transformers(tmp_path, name)


def test_sizes_are_those_of_the_files(tmp_path):
    write(tmp_path, "a", "parts/b", x="a", y="parts/b")
    assert find_weights(ModelFiles(str(tmp_path))) == {"a": 7, "parts/b": 7}


def test_complete_shards_need_no_index(tmp_path):
    write(tmp_path, *SHARDS, "model-00001-of-00005.safetensors", "other.safetensors")
    assert named(tmp_path) == SHARDS


@pytest.mark.parametrize(
    ("files", "index", "message"),
    [
        (["a"], {"x": "a", "y": "b", "z": "c"}, f"missing: b, c, which {INDEX} names"),
        (SHARDS[:2], {}, rf"missing: {SHARDS[2]} \({INDEX} does not exist either\)"),
        ([], {}, "missing: model.safetensors$"),
        (["pytorch_model.bin"], {}, "missing: model.safetensors; pytorch_model.bin can't be read"),
        (["model-Q4_K_M.gguf"], {}, "the option --gguf loads model-Q4_K_M.gguf"),
        (
            [*SHARDS, "model-00001-of-00001.safetensors"],
            {},
            "only one set of weight files may exist",
        ),
    ],
)
def test_missing_weight_files_are_named(tmp_path, files, index, message):
    write(tmp_path, *files, **index)
    with pytest.raises(ModelFilesError, match=message):
        named(tmp_path)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": {"x": 5}}'])
def test_an_index_without_files_is_refused(tmp_path, index):
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(ModelFilesError, match="has no weight_map that names a file"):
        named(tmp_path)


def test_an_index_that_is_not_json_is_named(tmp_path):
    (tmp_path / INDEX).write_text('{"weight_map"')
    with pytest.raises(ModelFilesError, match=f"{INDEX} is not JSON"):
        named(tmp_path)


def test_the_files_on_the_hub_are_chosen_by_the_same_rule(monkeypatch, tmp_path):
    folder = write(tmp_path, "a", "parts/b", "adapter.safetensors", x="a", y="parts/b")
    with use_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.add("owner/name", folder)
        assert find_weights(ModelFiles("owner/name")) == {"a": 7, "parts/b": 7}
        assert hub.downloaded() == {INDEX}
