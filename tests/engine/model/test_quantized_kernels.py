"""Triton's kernel for quantised weights: its choice, and the passes of models that have it.

Triton's interpreter stands in for a GPU.
"""

import logging

import pytest
import torch

from bench.compiled import Launches
from bench.passes import encode
from bench.random_model import Shape, write_random_model
from engine.config import EngineConfig
from engine.kernels import grouped_linear
from engine.loading import use_cuda_graphs
from engine.model import kernel_choice, kernel_trials
from engine.model.kernel_choice import choose_product_kernels
from engine.model.kv_cache import KVCache
from engine.model.rows import Segment
from engine.model.static_pass import Form, StaticPass
from engine.sizing.kv import SLACK_TOKENS
from engine.weights.quantization import QuantizedWeight, flattened, quantize, stack
from tests.engine.weights import test_gguf_file
from tests.engine.weights.published_models import rewrite
from tests.engine.weights.test_published_formats import LAYOUTS, SHAPE
from tests.engine.weights.test_quantized_loading import SCHEMES, hidden, load

CPU = torch.device("cpu")
TOLERANCE = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.setattr(kernel_choice, "_candidates", lambda *_: ("triton", "torch"))


def choose(model):
    return choose_product_kernels(model, torch.float32)


def quantized_parts(model):
    held = [whole for module in model.modules() for whole in vars(module).values()]
    return [part for part in flattened(held) if isinstance(part, QuantizedWeight)]


def published(layout):
    def write(folder):
        store, chosen, quantization, metadata, _scheme = LAYOUTS[layout]
        rewrite(write_random_model(folder, SHAPE), store, chosen, quantization, metadata)
        return load(folder)

    return write


def gguf(kinds):
    def write(folder):
        write_random_model(folder, test_gguf_file.SHAPE)
        test_gguf_file.write(folder / "model.gguf", folder, kinds)
        return test_gguf_file.load(folder, folder / "model.gguf")

    return write


def while_loading(scheme):
    def write(folder):
        write_random_model(folder, SHAPE)
        return load(folder, experts=scheme, linears=scheme)

    return write


MODELS = {
    **{name: published(name) for name in LAYOUTS if "own file" not in name},
    "GGUF Q8_0": gguf(test_gguf_file.q8_0),
    "GGUF Q4_K_M": gguf(test_gguf_file.q4_k_m),
    **{f"{scheme} while loading": while_loading(scheme) for scheme in SCHEMES},
}


@pytest.fixture(params=MODELS)
def model(request, tmp_path):
    return MODELS[request.param](tmp_path / "model")


def behind_tokens(model):
    """Returns the segment of a canvas behind 40 encoded tokens."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(6, 160, (40 + config.dimensions.canvas_length,), generator=generator)
    cache = KVCache(
        config.dimensions.layers,
        capacity=128,
        pass_tokens=64,
        dtype=torch.float32,
        device=CPU,
        slack=SLACK_TOKENS,
    )
    encode(model, tokens[:40], cache)
    return Segment(cache, tokens[40:], causal=False)


def run_fixed(model, segment):
    static = StaticPass(model, canvases=1)
    static.fill([segment], [None])
    forms = (Form.of(segment),)
    return static.run(forms, static.length(forms))


@torch.inference_mode()
def test_passes_have_the_same_results_with_every_layout_that_is_read(model):
    segment, plain = behind_tokens(model), hidden(model)
    plain_fixed = run_fixed(model, segment)
    assert choose(model)
    assert {part.kernel for part in quantized_parts(model)} == {"triton"}
    torch.testing.assert_close(hidden(model), plain, **TOLERANCE)
    torch.testing.assert_close(run_fixed(model, segment), plain_fixed, **TOLERANCE)


def test_every_weight_is_contiguous_as_the_kernel_requires(model):
    for part in quantized_parts(model):
        assert all(tensor.is_contiguous() for tensor in part.tensors().values())


@pytest.fixture
def int4_and_int8(tmp_path):
    write_random_model(tmp_path / "model", Shape(layers="ssf", hidden=64, mlp=96, expert=64))
    return load(tmp_path / "model", experts="int4", linears="int8")


def test_each_layout_is_tried_once_and_one_log_line_names_those_that_work(
    int4_and_int8, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    tried, try_product = [], kernel_trials.try_quantized_product

    def counted(weight, dtype):
        tried.append((weight.scheme, *weight.shape))
        try_product(weight, dtype)

    monkeypatch.setattr(kernel_choice, "try_quantized_product", counted)
    assert choose(int4_and_int8)
    distinct = {(part.scheme, *part.shape) for part in quantized_parts(int4_and_int8)}
    assert sorted(map(str, tried)) == sorted(map(str, distinct))
    assert len(tried) < len(quantized_parts(int4_and_int8))
    (line,) = caplog.records
    assert line.getMessage() == "int4 experts in groups of 32, int8 linears: triton's product"


@pytest.mark.parametrize("kind", ["experts", "linears"])
def test_a_trial_has_tiles_of_every_height_so_that_no_request_compiles_one(kind, monkeypatch):
    shape = (5, 24, 64) if kind == "experts" else (24, 64)
    weight = quantize(torch.randn(shape), "int4", CPU)
    monkeypatch.setattr(grouped_linear, "_kernel", grouped_linear._kernel)  # so that they are
    monkeypatch.setattr(grouped_linear, "target_of", grouped_linear.target_of)  # restored
    launches = Launches(grouped_linear)
    monkeypatch.setattr(kernel_trials, "_compare", lambda *_: None)  # nothing is computed
    kernel_trials.try_quantized_product(weight, torch.float32)
    heights = [args[-3] for args, _options in launches.calls]
    assert heights == ([16, 32, 64] if kind == "experts" else [16, 32, 64, 64])


def test_the_faster_product_is_taken_for_a_linear_and_triton_for_experts(
    int4_and_int8, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    timed = []

    def clock(work):
        kernel, weight, _ = work.args
        assert work().shape == (256, weight.shape[0])
        timed.append(weight.shape)
        wide = weight.shape[0] > weight.shape[1]
        return 1.0 if (kernel == "torch") == wide else 2.0

    monkeypatch.setattr(kernel_choice, "_clock", lambda _device: clock)
    choose(int4_and_int8)
    assert timed
    for part in quantized_parts(int4_and_int8):
        wide = part.codes.ndim == 2 and part.shape[0] > part.shape[1]
        assert part.kernel == ("torch" if wide else "triton")
    lines = [record.getMessage() for record in caplog.records]
    assert any("torch's product (triton 2.000 ms, torch 1.000 ms)" in line for line in lines)


def test_on_a_cpu_no_kernel_is_tried_and_nothing_is_logged(int4_and_int8, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(kernel_choice, "_candidates", lambda *_: ("torch",))
    choose(int4_and_int8)
    assert {part.kernel for part in quantized_parts(int4_and_int8)} == {"torch"}
    assert not caplog.records


def raising(*_args, **_kwargs):
    raise RuntimeError("no compiler")


def filled(value):
    def broken(rows, codes, ends, **_options):
        return torch.full((rows.shape[0], codes.shape[-2]), value)

    return broken


@pytest.mark.parametrize("broken", [raising, filled(0.0), filled(torch.nan)])
def test_a_failing_or_wrong_kernel_is_passed_over_and_the_cost_logged(
    int4_and_int8, monkeypatch, caplog, broken
):
    plain = hidden(int4_and_int8)
    monkeypatch.setattr(grouped_linear, "grouped_linear", broken)
    assert not choose(int4_and_int8)
    assert torch.equal(hidden(int4_and_int8), plain)
    warnings = {record.getMessage().split(":")[0]: record for record in caplog.records}
    assert set(warnings) == {"int4 experts in groups of 32", "int8 linears"}
    for name, record in warnings.items():
        assert record.levelno == logging.WARNING
        assert "held in full" in record.getMessage()
        assert ("the host waits" in record.getMessage()) == ("experts" in name)


@pytest.mark.parametrize("kind", ["linear", "experts"])
def test_unsupported_group_sizes_are_detected_at_start(kind, caplog):
    """A w4a16 checkpoint may have such groups. The parts beside them still have the kernel."""
    shape = (2, 8, 96) if kind == "experts" else (8, 96)
    codes = torch.full((*shape[:-1], 48), 0x5A, dtype=torch.uint8)
    strange = QuantizedWeight("int4", codes, torch.full((*shape[:-1], 2), 0.25))
    assert strange.group_size == 48
    module = torch.nn.Module()
    module.weight = stack([strange, quantize(torch.randn(shape), "int4", CPU)])
    waits = not choose(module)
    assert [part.kernel for part in module.weight.parts] == ["torch", "triton"]
    assert waits == (kind == "experts")
    (line,) = caplog.records
    assert "in groups of 48: triton's product can't be used" in line.getMessage()


@pytest.mark.parametrize("never_waits", [True, False])
def test_no_graph_is_captured_if_the_host_waits_in_a_pass_and_this_is_logged(never_waits, caplog):
    config = EngineConfig()
    assert use_cuda_graphs(config, torch.device("cuda"), never_waits=never_waits) == never_waits
    assert len(caplog.records) == (not never_waits)
    assert not use_cuda_graphs(config, CPU, never_waits=False)
    off = EngineConfig(cuda_graphs="off")
    assert not use_cuda_graphs(off, torch.device("cuda"), never_waits=False)
    assert len(caplog.records) == (not never_waits)
