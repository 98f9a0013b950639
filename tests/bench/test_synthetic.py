"""The measurement of a model with random weights, run with a small one on the CPU."""

import json
from dataclasses import replace
from math import isfinite, log

import pytest
import torch
from typer.testing import CliRunner

from bench import synthetic
from bench.__main__ import main
from bench.blocks import timed_answers
from bench.compare import Output, peak_bytes, report
from bench.formats import FORMATS, case_of, first_logits
from bench.random_weights import LOGITS_STD, network_config, random_network, weights_bytes
from bench.roofline import find_device, released
from bench.roofline import rows as roofline_rows
from bench.sides import random_prompt
from bench.synthetic import Trial, most_layers, rows
from engine.config import UNQUANTIZED, EngineConfig, Formats
from engine.denoise.sampler import SamplerConfig
from engine.loading import new_denoiser
from engine.model.weight_map import weight_targets
from engine.sizing.dimensions import Dimensions
from engine.sizing.gpu import Gpu
from engine.sizing.plan import make_plan
from engine.sizing.weights import weight_bytes
from engine.weights.quantization import QuantizedWeight

CPU = torch.device("cpu")
H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * 2**30)
TINY = replace(
    Dimensions.of(
        {
            "model_type": "diffusion_gemma",
            "canvas_length": 32,
            "text_config": {
                "vocab_size": 512,
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "num_global_key_value_heads": 1,
                "head_dim": 32,
                "global_head_dim": 64,
                "sliding_window": 64,
                "max_position_embeddings": 4096,
                "num_experts": 8,
                "top_k_experts": 2,
                "moe_intermediate_size": 32,
            },
        }
    ),
    tower=None,
)
SOME_FORMATS = (UNQUANTIZED, Formats("int4", "int8"))
TRIAL = Trial("tiny", layers=4, device=CPU, context=128, steps=3, rounds=2)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(synthetic.SIZES, "tiny", TINY)


def network(formats, dimensions=TINY):
    return random_network(
        network_config(dimensions),
        formats=formats,
        device=CPU,
        dtype=torch.float32,
    )


def denoiser(formats, dimensions=TINY):
    config = EngineConfig(max_context=256, prefix_cache_mib=0, max_active=2)
    sampler = SamplerConfig(confidence_threshold=-1.0)
    return new_denoiser(network(formats, dimensions), sampler, config)


def size(formats, dimensions=TINY):
    return sum(weight_bytes(dimensions, formats, element_bytes=4).values())


@pytest.mark.parametrize("formats", FORMATS, ids=case_of)
def test_a_network_is_as_large_as_computed_for_its_formats(formats):
    assert weights_bytes(network(formats)) == size(formats)


@pytest.mark.parametrize("formats", FORMATS, ids=case_of)
def test_a_network_is_not_made_from_larger_weights(formats):
    wide = replace(TINY, experts=64, expert_size=128, hidden_size=256)
    assert peak_bytes(lambda: network(formats, wide)) < 1.05 * size(formats, wide)


@pytest.mark.parametrize("formats", FORMATS, ids=case_of)
def test_quantised_random_weights_are_distributed_like_dense_ones(formats):
    held = [
        (target, getattr(target.module, target.attribute))
        for target in weight_targets(network(formats))
    ]
    quantized = [each for each in held if isinstance(each[1], QuantizedWeight)]
    assert bool(quantized) == (formats != UNQUANTIZED)
    for target, weight in quantized:
        values = weight.dequantize(torch.float32)
        assert values.isfinite().all()
        by_chance = 4 * values.numel() ** -0.5
        assert abs(values.mean()) < (0.1 + by_chance) * values.std()
        times = LOGITS_STD if target.kind == "embedding" else 1
        assert values.std() == pytest.approx(times * weight.shape[-1] ** -0.5, rel=0.2)


@pytest.mark.parametrize("formats", FORMATS, ids=case_of)
@pytest.mark.parametrize("layers", [1, 4])
def test_random_weights_give_logits_that_are_neither_flat_nor_certain(formats, layers):
    wide = replace(TINY, hidden_size=1024, layers=TINY.layers[-layers:])
    logits = first_logits(denoiser(formats, wide), random_prompt(TINY.vocab_size, 64))
    assert logits.isfinite().all()
    spread = torch.distributions.Categorical(logits=logits).entropy()
    assert spread.mean() < log(TINY.vocab_size) - 1
    assert spread.mean() > 0.5


def test_a_block_has_all_its_steps_with_any_number_of_canvases():
    some = denoiser(UNQUANTIZED)
    some.sampler = replace(some.sampler, max_denoising_steps=3)
    prompt = random_prompt(TINY.vocab_size, 128)
    for canvases in (1, 2, 1):  # 1 again, to see that the caches are free by then
        answers = timed_answers(some, prompt, canvases=canvases, chunk=40)
        assert len(answers.passes_s) == 3
        assert answers.prefill_tokens_s > 0


def test_the_command_measures_every_format_and_reports_that_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setitem(synthetic.SIZES, "26b", TINY)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file, plot = tmp_path / "rows.json", tmp_path / "plot.png"
    options = ["--synthetic", "26b", "--layers", "2", "--json", str(file), "--plot", str(plot)]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    announcement = "No GPU that torch can use. 26b, 2 of 4 layers, random weights, on cpu"
    assert result.stdout.strip().startswith(announcement)
    assert result.stderr.startswith("easel: importing PyTorch and Transformers\n")
    assert plot.stat().st_size > 0
    written = json.loads(file.read_text())
    assert len(written) == len(FORMATS)
    for formats, row in zip(FORMATS, written, strict=True):
        assert row["layers"] == 2
        assert row["weights_gb"] == size(formats, replace(TINY, layers=TINY.layers[-2:])) / 1e9
        assert 0 < row["above_weights_gb"] < row["planned_gb"]
        assert row["tokens_s_at_10"] == pytest.approx(10 * row["steps"] / row["block_ms"] * 1e3)
        assert 0 < row["step_ms"] < row["block_ms"]
        assert isfinite(row["prefill_tokens_s"])
        assert row["roofline_share"] is None  # a CPU's bandwidth is not known
        assert row["path"] == "dynamic"


def test_a_format_that_does_not_fit_has_a_row_with_its_needs(monkeypatch):
    monkeypatch.setattr(synthetic, "FORMATS", SOME_FORMATS)
    needs = [synthetic._needs_bytes(TRIAL, formats) for formats in SOME_FORMATS]
    free = (max(needs) - 1) / synthetic._CPU_SHARE
    monkeypatch.setattr(synthetic, "free_memory", lambda _device: free)
    refused, other = rows(TRIAL)
    assert refused["case"].startswith("float32: does not fit, needs ")
    assert refused["step_ms"] is None
    assert other["step_ms"] > 0


def test_a_format_that_runs_out_of_memory_does_not_stop_the_others(monkeypatch):
    make_network = random_network

    def run_out_of_memory(*args, formats, **others):
        if not formats.quantized:
            torch.empty(2**60)  # raises the allocator's out-of-memory error
        return make_network(*args, formats=formats, **others)

    monkeypatch.setattr(synthetic, "random_network", run_out_of_memory)
    monkeypatch.setattr(synthetic, "FORMATS", SOME_FORMATS)
    refused, other = rows(TRIAL)
    assert refused["case"] == "float32: out of memory"
    assert other["step_ms"] > 0


def test_a_format_that_fails_has_a_row_and_the_json_file_has_each_row_as_it_is_known(
    monkeypatch, tmp_path
):
    file, make_network = tmp_path / "rows.json", random_network
    written = []

    def fail(*args, formats, **others):
        written.append(json.loads(file.read_text()) if file.exists() else [])
        if not formats.quantized:
            raise RuntimeError("CUDA error: an illegal\nmemory access [/dim]")
        return make_network(*args, formats=formats, **others)

    monkeypatch.setattr(synthetic, "random_network", fail)
    monkeypatch.setattr(synthetic, "FORMATS", SOME_FORMATS)
    report("tiny", rows(TRIAL), synthetic.COLUMNS, Output(json=file))
    failed, other = json.loads(file.read_text())
    reason = "RuntimeError: CUDA error: an illegal memory access [/dim]"
    assert failed["case"] == f"float32: {reason}"
    assert failed["step_ms"] is None
    assert other["step_ms"] > 0
    assert written == [[], [failed]]


def test_on_a_known_gpu_the_batch_of_its_profile_has_a_row_and_shares_are_given(monkeypatch):
    monkeypatch.setattr(synthetic, "FORMATS", SOME_FORMATS[:1])
    monkeypatch.setattr(synthetic, "find_gpu", lambda _device: H100)
    one, three = rows(replace(TRIAL, rounds=1))
    assert (one["canvases"], three["canvases"]) == (1, 3)
    assert three["tokens_s_at_10"] == pytest.approx(3 * 10 * 3 / three["block_ms"] * 1e3)
    for row in (one, three):
        assert row["roofline_share"] == pytest.approx(row["roofline_ms"] / row["step_ms"])


def test_the_roofline_equals_that_of_the_roofline_table(monkeypatch):
    monkeypatch.setattr(synthetic, "find_gpu", lambda _device: H100)
    table = {row["case"]: row["step_ms"] for row in roofline_rows()}
    for formats, case in {UNQUANTIZED: "BF16", Formats("int4"): "4-bit experts"}.items():
        step_s = synthetic.roofline_s(Trial("26b", 30, CPU), formats, 1)
        assert step_s * 1e3 == pytest.approx(table[f"H100 SXM, {case}"])


@pytest.mark.parametrize("memory_gb", [8, 16, 40])
def test_a_cpu_gets_as_many_layers_as_fit_in_memory(memory_gb):
    def needs(layers):
        trial = Trial("26b", layers, CPU, context=1024)
        config = EngineConfig(max_context=1280, max_active=1, prefix_cache_mib=0)
        return make_plan(trial.dimensions, config, cuda=False).total

    most = most_layers(Trial("26b", 1, CPU, context=1024), memory_gb * 10**9)
    assert needs(most) <= memory_gb * 10**9 < needs(most + 1)


def test_fewer_layers_leave_all_other_dimensions_unchanged():
    whole, some = released(), Trial("26b", 7, CPU).dimensions
    assert replace(some, layers=whole.layers) == replace(whole, tower=None)
    assert some.layers == (*whole.layers[:6], whole.layers[-1])
    assert Trial("26b", 30, CPU).dimensions.layers == whole.layers


@pytest.mark.parametrize(
    ("gpu", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H200", 4.8e12),
        ("NVIDIA GeForce RTX 4090", 1.008e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_gpu_has_the_bandwidth_of_its_own_model(gpu, bandwidth):
    device = find_device(gpu)
    assert (None if device is None else device.bandwidth) == bandwidth


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--synthetic", "7b"], "'26b'"),
        (["--synthetic", "26b", "--layers", "31"], "30"),
        (["--layers", "2"], "can only be used with --synthetic"),
        (["counts", "--json", "/nowhere/rows.json"], "the folder /nowhere does not exist"),
        (["--synthetic", "26b", "tail"], "can't be used before a command"),
        (["--json", "rows.json", "counts"], "can't be used before a command"),
    ],
)
def test_contradictory_options_are_refused(arguments, expected):
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert expected in result.output
