"""The limit of the cache of quantised weights: what is removed, and what never is."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.random_model import Shape, write_random_model
from engine.config import EngineConfig, Formats
from engine.loading import build_denoiser
from engine.model.checkpoint import find_checkpoint, load_model

ROOT = Path(__file__).parents[3]
SHAPE = Shape(layers="sf", hidden=64, mlp=96, expert=32)
OPTIONS = ({"experts": "int8"}, {"experts": "fp8"}, {"linears": "int8"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_model(tmp_path_factory.mktemp("model"), SHAPE)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def load(folder, cache, most_bytes, **formats):
    return load_model(
        find_checkpoint(str(folder)),
        device=torch.device("cpu"),
        dtype=torch.float32,
        formats=Formats(**formats),
        cache_root=cache,
        cache_bytes=most_bytes,
    )


def start(folder, cache, most_bytes, **formats):
    """Load a model and give it up. Returns the folder that was used last."""
    load(folder, cache, most_bytes, **formats)
    gc.collect()
    return max(cache.iterdir(), key=lambda each: each.stat().st_mtime_ns)


def size(folder):
    return sum(file.stat().st_size for file in folder.iterdir())


def age(folder, days):
    """Make a folder look as if it was used last so many days ago."""
    then = folder.stat().st_mtime - days * 86400
    os.utime(folder, (then, then))


def test_weights_used_longest_ago_are_removed_until_the_others_are_within_the_limit(
    folder, cache, tmp_path
):
    first, second = (start(folder, cache, 1e9, **options) for options in OPTIONS[:2])
    limit = size(second) + size(start(folder, tmp_path / "other", 1e9, **OPTIONS[2]))
    age(first, days=2)
    age(second, days=1)
    third = start(folder, cache, limit, **OPTIONS[2])
    assert sorted(cache.iterdir()) == sorted([second, third])


def test_a_start_that_only_reads_counts_as_use_and_keeps_the_limit_too(folder, cache):
    first, second = (start(folder, cache, 1e9, **options) for options in OPTIONS[:2])
    age(first, days=2)
    age(second, days=1)
    assert start(folder, cache, size(first), **OPTIONS[0]) == first
    assert list(cache.iterdir()) == [first]


def test_the_weights_of_this_start_are_kept_though_they_exceed_the_limit(folder, cache):
    start(folder, cache, 1e9, **OPTIONS[0])
    kept = start(folder, cache, 0, **OPTIONS[1])
    assert list(cache.iterdir()) == [kept]


def test_weights_that_another_process_has_loaded_are_never_removed(folder, cache):
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.engine.weights.test_quantized_cache import load
model = load({str(folder)!r}, Path({str(cache)!r}), 1e9, experts="int8")
print("loaded", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "loaded\n"
        (used,) = cache.iterdir()
        age(used, days=9)
        unused = start(folder, cache, 1e9, **OPTIONS[1])
        latest = start(folder, cache, 0, **OPTIONS[2])
        assert sorted(cache.iterdir()) == sorted([used, latest])
        assert unused not in cache.iterdir()
        process.stdin.close()
    start(folder, cache, 0, **OPTIONS[2])
    assert list(cache.iterdir()) == [latest]


def test_weights_are_locked_for_as_long_as_their_model_exists(folder, cache):
    model = load(folder, cache, 1e9, **OPTIONS[0])
    (used,) = cache.iterdir()
    start(folder, cache, 0, **OPTIONS[1])
    assert used in cache.iterdir()
    del model
    start(folder, cache, 0, **OPTIONS[1])
    assert used not in cache.iterdir()


def test_folders_that_are_not_of_the_cache_are_left_alone(folder, cache):
    (cache / "notes").mkdir(parents=True)
    (cache / "notes" / "file").write_bytes(b"0" * 1000)
    start(folder, cache, 0, **OPTIONS[0])
    assert (cache / "notes" / "file").exists()


def test_the_setting_reaches_the_cache(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for number, scheme in enumerate(("int8", "fp8"), 1):
        config = {"model": str(folder), "device": "cpu", "quantize_experts": scheme}
        build_denoiser(EngineConfig(**config, quantized_cache_gb=1))
        gc.collect()
        assert len(list((tmp_path / "easel" / "quantized").iterdir())) == number
    build_denoiser(EngineConfig(**config, quantized_cache_gb=0))
    assert len(list((tmp_path / "easel" / "quantized").iterdir())) == 1
