"""The planned memory, and the settings that are proposed if a plan does not fit."""

import dataclasses
import logging
from types import SimpleNamespace

import pytest
import torch

import engine.__main__
import engine.loading
import engine.worker
from bench.random_model import Shape, write_random_model
from bench.roofline import released
from engine.config import EngineConfig
from engine.loading import check_plan
from engine.sizing.dimensions import MODELOPT_FILE, RELEASED_MODEL, Dimensions
from engine.sizing.model_files import ModelFiles
from engine.sizing.plan import (
    DoesNotFitError,
    check_fit,
    differences,
    largest_context,
    make_plan,
    most_canvases,
    nearest,
)
from engine.sizing.weight_files import with_files
from tests.hub import use_hub

GB = 10**9
LEAST = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}


def config(**options):
    return EngineConfig(model=RELEASED_MODEL, **options)


def total(config, cuda=True):
    return make_plan(released(), config, cuda=cuda).total


def test_a_plan_is_the_sum_of_its_parts():
    plan = make_plan(released(), config(), cuda=True)
    assert plan.kv == 4 * plan.kv_slot
    parts = [sum(plan.weights.values()), plan.kv, plan.activations, plan.graphs, plan.libraries]
    assert plan.total == sum(parts) + 2048 * 2**20
    assert plan.kv_token == 20 * 1024


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"max_context": 65536}, "kv_slot"),
        ({"max_active": 5}, "kv"),
        ({"prefill_chunk": 2048}, "kv_slot"),
        ({"speculate": True}, "activations"),
        ({"prefix_cache_mib": 4096}, "prefix_cache"),
        ({"dtype": "float32"}, "weights_total"),
    ],
)
def test_larger_settings_need_more_memory(more, part):
    before, after = (make_plan(released(), config(**each), cuda=True) for each in ({}, more))
    assert getattr(after, part) > getattr(before, part)
    assert after.total > before.total


@pytest.mark.parametrize(("options", "cuda"), [({"cuda_graphs": "off"}, True), ({}, False)])
def test_without_cuda_graphs_none_are_planned(options, cuda):
    assert make_plan(released(), config(**options), cuda=cuda).graphs == 0


def test_each_stream_that_makes_products_has_workspaces_of_cublas():
    eager = make_plan(released(), config(cuda_graphs="off"), cuda=True)
    captured = make_plan(released(), config(), cuda=True)
    workspaces = 2 * 32 * 2**20
    assert eager.libraries == captured.libraries > workspaces
    assert captured.graphs > workspaces + 16 * 16 * 2**20


def test_the_planned_context_is_not_longer_than_the_model_allows():
    text = {**LEAST, "max_position_embeddings": 512}
    dimensions = Dimensions.of({"model_type": "diffusion_gemma", "text_config": text})
    assert make_plan(dimensions, EngineConfig(max_context=9999), cuda=False).context_tokens == 512


def test_the_largest_context_fits_and_a_step_more_does_not():
    memory = total(config(max_context=100_000))
    context = largest_context(released(), config(), memory, cuda=True)
    assert total(config(max_context=context)) <= memory < total(config(max_context=context + 1024))
    assert largest_context(released(), config(), 10**12, cuda=True) == released().max_positions
    assert largest_context(released(), config(), 10 * GB, cuda=True) == 0


def test_the_most_canvases_fit_and_one_more_does_not():
    memory = total(config(max_active=6))
    canvases = most_canvases(released(), config(), memory, cuda=True)
    assert total(config(max_active=canvases)) <= memory < total(config(max_active=canvases + 1))
    assert most_canvases(released(), config(), 10 * GB, cuda=True) == 0


FORMATS = {"quantize_experts", "quantize_linears"}


@pytest.mark.parametrize(
    ("memory_gb", "given_up"),
    [
        (60, {"prefix_cache_mib"}),
        (57.5, {"prefix_cache_mib", "max_active"}),
        (54.3, {"prefix_cache_mib", "max_active", "max_context"}),
        (44, FORMATS),
        (24, {"quantize_experts", "max_active", "prefix_cache_mib"}),
        (18.9, {*FORMATS, "quantize_rest", "max_active", "prefix_cache_mib", "max_context"}),
    ],
)
def test_as_little_as_possible_is_given_up(memory_gb, given_up):
    memory = round(memory_gb * GB)
    assert total(config()) > memory
    proposed = nearest(released(), config(), memory, cuda=True)
    assert set(differences(config(), proposed)) == given_up
    assert total(proposed) <= memory


@pytest.mark.parametrize("memory_gb", [17, 17.8, *range(19, 62, 3)])
@pytest.mark.parametrize("options", [{}, {"speculate": True}, {"max_context": 200_000}])
def test_the_proposed_settings_fit(memory_gb, options):
    memory = round(memory_gb * GB)
    proposed = nearest(released(), config(**options), memory, cuda=True)
    assert proposed is None or total(proposed) <= memory
    assert (proposed is None) == (memory_gb < 17.8)


def test_a_refusal_names_the_needed_and_the_available_memory_and_options_that_fit():
    with pytest.raises(DoesNotFitError) as refused:
        check_fit(released(), config(), 24 * GB, cuda=True, device="Some GPU")
    text = str(refused.value)
    assert text.startswith(f"model '{RELEASED_MODEL}' needs 61.4 GB (weights 51.6 GB,")
    assert text.endswith(
        "), but Some GPU has 24.0 GB for it. "
        "These options fit: --quantize-experts int4 --max-active 2 --prefix-cache-mib 0"
    )


def test_a_refusal_says_so_if_no_settings_fit():
    with pytest.raises(DoesNotFitError, match=r"No settings of this model fit\.$"):
        check_fit(released(), config(), 8 * GB, cuda=True, device="Some GPU")


def test_the_worker_refuses_on_a_gpu_and_only_warns_on_a_cpu(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Some GPU")
    monkeypatch.setattr(engine.loading, "total_ram_bytes", lambda: 200 * GB)
    with pytest.raises(DoesNotFitError, match=r"Some GPU has 24\.0 GB"):
        check_plan(released(), config(), 24 * GB, torch.device("cuda"))
    check_plan(released(), config(), 24 * GB, torch.device("cpu"))
    assert "These options fit: --quantize-experts" in caplog.text
    caplog.clear()
    check_plan(released(), config(), 80 * GB, torch.device("cuda"))
    assert not caplog.text


def test_on_a_cpu_the_worker_refuses_what_would_not_fit_an_idle_machine(monkeypatch):
    monkeypatch.setattr(engine.loading, "total_ram_bytes", lambda: 32 * GB)
    with pytest.raises(DoesNotFitError, match=r"this machine \(memory and swap\) has 32\.0 GB"):
        check_plan(released(), config(), 24 * GB, torch.device("cpu"))


@pytest.fixture
def small_gpu(monkeypatch):
    """Makes the worker run as if there were a GPU with 24 GB."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Some GPU")
    monkeypatch.setattr(engine.loading, "choose_device", lambda _config: torch.device("cuda"))
    monkeypatch.setattr(engine.loading, "free_memory", lambda _device: 24 * GB)


def test_the_worker_refuses_before_it_downloads_anything(monkeypatch, small_gpu):
    monkeypatch.setattr(engine.loading, "find_dimensions", lambda *_: released())
    monkeypatch.setattr(engine.loading, "find_checkpoint", lambda *_: pytest.fail("downloads"))
    with pytest.raises(DoesNotFitError, match=r"Some GPU has 24\.0 GB"):
        engine.loading.build_denoiser(config())


def test_a_quantised_checkpoint_of_unknown_size_is_planned_from_its_files(
    tmp_path, monkeypatch, small_gpu
):
    unknown = dataclasses.replace(released(), quantized=True)

    def download(_checkpoint):
        with (tmp_path / "model.safetensors").open("wb") as file:
            file.truncate(30 * GB)  # a sparse file, which takes no disk space

    monkeypatch.setattr(
        engine.loading,
        "find_dimensions",
        lambda model, *_: (
            with_files(unknown, ModelFiles(model)) if model == str(tmp_path) else unknown
        ),
    )
    checkpoint = SimpleNamespace(folder=tmp_path, gguf=None, generation={})
    monkeypatch.setattr(engine.loading, "find_checkpoint", lambda *_: checkpoint)
    monkeypatch.setattr(engine.loading, "download_weights", download)
    with pytest.raises(DoesNotFitError, match=r"weights 30\.0 GB.*No settings of this model fit"):
        engine.loading.build_denoiser(config())


def test_a_quantised_checkpoint_on_the_hub_is_planned_before_it_is_downloaded(
    tmp_path, monkeypatch, small_gpu
):
    folder = write_random_model(tmp_path / "model", Shape())
    (folder / MODELOPT_FILE).write_text("{}")
    monkeypatch.setattr(engine.loading, "free_memory", lambda _device: 2**20)
    with use_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.add("owner/name", folder)
        with pytest.raises(DoesNotFitError, match=r"Some GPU has 1\.0 MB"):
            engine.loading.build_denoiser(EngineConfig(model="owner/name"))
    assert hub.downloaded() == {"config.json"}


def test_the_process_logs_why_it_refuses_and_returns_an_error_code(monkeypatch, caplog):
    def refuse(_address, _config):
        raise DoesNotFitError("it is too large")

    monkeypatch.setattr(engine.worker, "serve", refuse)
    assert engine.__main__._serve("ipc:///nowhere", config()) != 0
    assert caplog.record_tuples == [("engine", logging.CRITICAL, "it is too large")]
