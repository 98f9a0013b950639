"""Quantising while loading: results, memory, the cache on disk and refused weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.passes import decode, encode
from bench.random_model import Shape, write_random_model
from bench.sides import demo_prompt
from engine.config import EngineConfig, Formats
from engine.loading import build_denoiser
from engine.messages import Block, GenerateRequest, Sampling
from engine.model.checkpoint import CheckpointError, find_checkpoint, load_model
from engine.model.kv_cache import KVCache
from engine.weights.quantization import QuantizedWeight
from engine.worker import Worker

CPU = torch.device("cpu")
SHAPE = Shape(layers="sf", hidden=64, mlp=96, expert=32)
SCHEMES = ("int8", "int4", "fp8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_model(tmp_path_factory.mktemp("model"), SHAPE)


def load(folder, *, dtype=torch.float32, cache_root=None, **formats):
    return load_model(
        find_checkpoint(str(folder)),
        device=CPU,
        dtype=dtype,
        formats=Formats(**formats),
        cache_root=cache_root,
    )


def weights(model):
    """Returns the experts' and linears' weights by layer and name."""
    by_name = {}
    for index, layer in enumerate(model.each_layer()):
        for part in ("attention", "mlp", "experts"):
            module = getattr(layer, part)
            for name in ("qkv", "out") if part == "attention" else ("gate_up", "down"):
                by_name[f"{index}.{part}.{name}"] = getattr(module, name)
    return by_name


def everything(model):
    return weights(model) | rest(model)


def put_in_full(model):
    """Replace each quantised weight of this model by its dequantised values. Returns the model."""
    for module in model.modules():
        for name, weight in list(vars(module).items()):
            if isinstance(weight, QuantizedWeight):
                delattr(module, name)
                setattr(module, name, torch.nn.Parameter(weight.dequantize(torch.float32)))
    return model


def rest(model):
    """Returns the matrices of the kind `rest` by name: neither experts nor linears."""
    conditioning = model.self_conditioning.mlp
    routers = {f"router {i}": layer.router.proj for i, layer in enumerate(model.each_layer())}
    return {
        "embedding": model.embedding,
        "gate_up": conditioning.gate_up,
        "down": conditioning.down,
        **routers,
    }


def hidden(model, *, soft=False):
    """Returns the hidden states of a canvas behind a prompt, self-conditioned if `soft` is true."""
    cache = KVCache(
        model.dimensions.layers,
        capacity=128,
        pass_tokens=64,
        dtype=torch.float32,
        device=CPU,
        slack=0,
    )
    tokens = torch.randint(6, 160, (40,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        encode(model, tokens[:24], cache)
        return decode(model, tokens[24:], model.embed(tokens[:16]) if soft else None, cache)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantised_pass_equals_one_with_the_dequantised_weights(folder, scheme):
    model = load(folder, experts=scheme, linears=scheme)
    assert all(weight.scheme == scheme for weight in weights(model).values())
    states = hidden(model)
    assert torch.allclose(states, hidden(put_in_full(model)), atol=1e-5)
    assert not torch.allclose(states, hidden(load(folder)), atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_experts_and_linears_have_separate_options(folder, scheme):
    for experts, linears in ((scheme, None), (None, scheme)):
        loaded = weights(load(folder, experts=experts, linears=linears))
        for name, weight in loaded.items():
            expected = experts if "experts" in name else linears
            assert getattr(weight, "scheme", None) == expected, name


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_the_rest_is_quantised_by_its_own_option(folder, scheme):
    model = load(folder, rest=scheme)
    assert {weight.scheme for weight in rest(model).values()} == {scheme}
    assert not any(isinstance(weight, QuantizedWeight) for weight in weights(model).values())
    left = {name for name, tensor in model.state_dict().items() if tensor.ndim > 1}
    assert len(left) == len(weights(model))
    assert all(name.startswith("layers.") and "router" not in name for name in left)
    states = hidden(model, soft=True)
    assert torch.allclose(states, hidden(put_in_full(model), soft=True), atol=1e-5)
    assert not torch.allclose(states, hidden(load(folder), soft=True), atol=1e-3)


def test_nothing_but_experts_and_linears_is_quantised_by_their_options(folder):
    dense = load(folder).state_dict()
    model = load(folder, experts="int4", linears="int8")
    kept = model.state_dict()
    assert all(torch.equal(tensor, dense[name]) for name, tensor in kept.items())
    gone = {name for name in dense if name not in kept}
    assert len(gone) == len(weights(model))
    assert "self_conditioning.mlp.gate_up" in kept
    assert "layers.0.router.proj" in kept


def test_nbytes_of_loaded_weights_follow_from_their_schemes(folder):
    loaded = weights(load(folder, experts="int4", linears="int8"))
    for name, weight in loaded.items():
        rows = weight.shape[:-1].numel()
        expected = weight.shape.numel() * 4.5 / 8 if "experts" in name else None
        assert weight.nbytes == (expected or weight.shape.numel() + 2 * rows), name


def test_a_weight_whose_shape_does_not_suit_the_scheme_is_refused(tmp_path):
    write_random_model(tmp_path, Shape(layers="f"))
    with pytest.raises(CheckpointError, match="int4 needs a multiple of 32 input features, not 48"):
        load(tmp_path, experts="int4")


def test_a_quantising_load_lists_missing_tensors_and_caches_nothing(folder, tmp_path):
    broken = tmp_path / "model"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.decoder.layers.1.experts.down_proj"]
    tensors["model.decoder.layers.0.experts.down_proj"] = torch.ones(3)
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing: .*1\.experts\.down_proj; 1 mis-shaped"):
        load(broken, experts="int8", cache_root=tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []


def test_a_second_start_reads_the_weights_cached_by_the_first(folder, tmp_path, monkeypatch):
    options = {"experts": "int4", "linears": "fp8", "rest": "int8", "cache_root": tmp_path}
    first = everything(load(folder, **options))
    monkeypatch.setattr(
        "engine.model.checkpoint.quantize", lambda *_: pytest.fail("quantised once more")
    )
    second = everything(load(folder, **options))
    for name, weight in first.items():
        for part, tensor in weight.tensors().items():
            assert torch.equal(
                second[name].tensors()[part].view(torch.uint8), tensor.view(torch.uint8)
            ), name


def test_each_scheme_and_each_checkpoint_has_its_own_cache(folder, tmp_path):
    load(folder, experts="int8", cache_root=tmp_path)
    load(folder, experts="fp8", cache_root=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    load(folder, experts="fp8", rest="int8", cache_root=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    (folder / "model.safetensors").touch()
    load(folder, experts="fp8", cache_root=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_cache_file_is_written_again_and_logged(folder, tmp_path, caplog):
    expected = weights(load(folder, experts="int8", cache_root=tmp_path))["0.experts.down"]
    file = next(tmp_path.rglob("*layers.0.experts.down_proj.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    for warnings in (1, 1):  # the first load has written the file again
        loaded = weights(load(folder, experts="int8", cache_root=tmp_path))["0.experts.down"]
        assert torch.equal(loaded.codes, expected.codes)
        assert caplog.text.count("can't be read") == warnings
    assert len(list(tmp_path.iterdir())) == 1


def test_an_interrupted_load_leaves_no_cache(folder, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.model.checkpoint._Loading.report", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(folder, experts="int8", cache_root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_starts_are_removed_and_folders_of_live_ones_are_not(folder, tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, live = tmp_path / f"some.{ended.pid}", tmp_path / f"other.{os.getppid()}"
    left.mkdir()
    live.mkdir()
    load(folder, experts="int8", cache_root=tmp_path)
    assert not left.exists()
    assert live.exists()


def test_a_cache_that_cannot_be_written_is_skipped_and_logged(folder, tmp_path, caplog):
    (tmp_path / "file").touch()
    loaded = weights(load(folder, experts="int8", cache_root=tmp_path / "file"))
    assert loaded["0.experts.down"].scheme == "int8"
    assert "not cached" in caplog.text


def test_the_options_reach_the_load_and_the_cache_can_be_disabled(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = {"quantize_experts": "int4", "quantize_linears": "int8", "device": "cpu"}
    model = build_denoiser(EngineConfig(**options, quantized_cache=False)).model
    assert {w.scheme for n, w in weights(model).items() if "experts" in n} == {"int4"}
    assert {w.scheme for n, w in weights(model).items() if "experts" not in n} == {"int8"}
    assert list(tmp_path.iterdir()) == []
    build_denoiser(EngineConfig(**options))
    assert len(list((tmp_path / "easel" / "quantized").iterdir())) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_demo_model_answers_correctly_in_each_scheme(scheme):
    config = EngineConfig(
        device="cpu",
        quantize_experts=scheme,
        quantize_linears=scheme,
        quantize_rest="fp8" if scheme == "fp8" else "int8",
        quantized_cache=False,
    )
    worker = Worker(build_denoiser(config), config)
    plain = EngineConfig(device="cpu")
    reference = Worker(build_denoiser(plain), plain)
    for question in ("Count to 20", "What is 17 + 25?"):
        request = GenerateRequest(question, demo_prompt(question), 128, Sampling(0))
        answer, expected = (
            [t for m in w.generate(request) if isinstance(m, Block) for t in m.tokens]
            for w in (worker, reference)
        )
        assert answer == expected


MEASURE = """
import sys, torch
torch.set_num_threads(1)
from engine.config import Formats
from engine.model.checkpoint import find_checkpoint, load_model

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

def load(scheme, on_progress):
    return load_model(find_checkpoint(sys.argv[1]), device=torch.device("cpu"),
                      dtype=torch.bfloat16, on_progress=on_progress,
                      formats=Formats(scheme, scheme))

warm = load_model(find_checkpoint(sys.argv[2]), device=torch.device("cpu"), dtype=torch.bfloat16,
                  formats=Formats("int4", "int4"))
before, most = anonymous(), 0
def measure(*_):
    global most
    most = max(most, anonymous())
model = load("int4", measure)
kept = sum(t.nbytes for t in model.state_dict().values())
for layer in model.each_layer():
    for module in (layer.attention, layer.mlp, layer.experts):
        kept += sum(w.nbytes for w in vars(module).values() if hasattr(w, "scheme"))
print(most - before, kept)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_quantising_load_holds_little_more_than_its_result(folder, tmp_path):
    shape = Shape(layers="s" * 7 + "f", hidden=256, mlp=128, expert=64, experts=48)
    write_random_model(tmp_path, shape)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({n: t.bfloat16() for n, t in tensors.items()}, tmp_path / "model.safetensors")
    dense = sum(t.nbytes // 2 for t in tensors.values())
    del tensors
    root = Path(__file__).parents[3]
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), str(folder)],
        capture_output=True,
        text=True,
        check=True,
        # Freed memory is returned to the system at once, so that it is not counted as held.
        env={**os.environ, "PYTHONPATH": str(root), "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    most, kept = map(int, ran.stdout.split())
    largest = 48 * 128 * 256 * 2  # bytes of the largest tensor, gate_up_proj of a layer
    assert kept < most < kept + largest < dense, (most, kept, dense)


def test_an_already_quantised_checkpoint_is_not_quantised_again(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for option in ("experts", "linears", "rest"):
        with pytest.raises(CheckpointError, match="quantize_linears and quantize_rest can only be"):
            load(tmp_path, **{option: "int8"})
