"""Which kernels are chosen, on a CPU that Triton's interpreter makes a GPU of."""

import logging

import pytest
import torch

from bench.random_model import Shape, write_random_model
from engine.config import EngineConfig
from engine.device import DeviceError
from engine.kernels import grouped_linear, prefix_attention
from engine.loading import build_denoiser
from engine.model import kernel_choice
from engine.model.experts import Experts, Routing
from engine.model.kernel_choice import choose_attention_kernel, choose_product_kernels
from engine.sizing.dimensions import LayerShape

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def experts():
    layers = [Experts(48, 40, 5) for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return torch.nn.ModuleList(layers)


def choose(model):
    return choose_product_kernels(model, torch.float32)


@pytest.mark.parametrize(
    ("capability", "dtype", "best"),
    [
        ((8, 9), torch.bfloat16, "triton"),
        ((9, 0), torch.bfloat16, "torch"),
        ((9, 0), torch.float16, "triton"),
        ((10, 0), torch.bfloat16, "torch"),
        ((10, 3), torch.bfloat16, "torch"),
        ((12, 0), torch.bfloat16, "triton"),
        ((12, 1), torch.bfloat16, "triton"),
    ],
    ids=str,
)
def test_pytorch_s_product_comes_first_where_it_does_not_wait_for_the_host(
    monkeypatch, capability, dtype, best
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    first, second = kernel_choice._candidates(CUDA, dtype)
    assert first == best
    assert {first, second} == {"torch", "triton"}


def test_on_a_cpu_nothing_is_tried_and_nothing_logged(experts, caplog):
    caplog.set_level(logging.INFO)
    choose(experts)
    assert {each.kernel for each in experts} == {"torch"}
    assert not caplog.records


@pytest.mark.parametrize("order", [("triton", "torch"), ("torch", "triton")], ids=str)
def test_the_first_that_runs_is_every_layer_s_and_the_log_names_it(
    experts, caplog, monkeypatch, order
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(kernel_choice, "_candidates", lambda *_: order)
    assert choose(experts)  # the host waits in neither
    assert {each.kernel for each in experts} == {order[0]}
    (line,) = caplog.records
    assert order[0] in line.getMessage()


def raising(*_args, **_kwargs):
    raise RuntimeError("no compiler")


def wrong(rows, weights, ends):
    return torch.zeros(rows.shape[0], weights.shape[1])


def not_numbers(rows, weights, ends):
    return torch.full((rows.shape[0], weights.shape[1]), torch.nan)


@pytest.mark.parametrize("broken", [raising, wrong, not_numbers])
def test_a_kernel_that_fails_or_computes_something_else_is_passed_over(
    experts, caplog, monkeypatch, broken
):
    monkeypatch.setattr(kernel_choice, "_candidates", lambda *_: ("triton", "torch"))
    monkeypatch.setattr(grouped_linear, "grouped_linear", broken)
    assert not choose(experts)  # in torch's the host waits, or it would have come first
    assert {each.kernel for each in experts} == {"torch"}
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert "triton" in line.getMessage()


def test_where_none_runs_the_worker_cannot_start(experts, monkeypatch):
    monkeypatch.setattr(kernel_choice, "_candidates", lambda *_: ("triton", "torch"))
    monkeypatch.setattr(kernel_choice, "grouped_mm", raising)
    with pytest.raises(DeviceError, match="cpu"):
        choose(experts)


@torch.inference_mode()
def test_experts_give_the_same_with_either_product(experts):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(33, 48, generator=generator)
    scores = torch.rand(33, 5, generator=generator)
    scores[:, 3] = 0.0  # an expert that nobody chooses
    choice = Routing(scores.topk(2).indices, torch.rand(33, 2, generator=generator))
    plain = experts[0](x, choice)
    experts[0].kernel = "triton"
    torch.testing.assert_close(experts[0](x, choice), plain)


def test_a_loaded_model_s_layers_have_the_chosen_product(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_choice, "_candidates", lambda *_: ("triton", "torch"))
    folder = write_random_model(tmp_path, Shape(layers="sf", canvas=8))
    model = build_denoiser(EngineConfig(model=str(folder), device="cpu")).model
    assert [layer.experts.kernel for layer in model.each_layer()] == ["triton", "triton"]


LAYERS = (LayerShape(2, 16, 32), LayerShape(1, 32, None), LayerShape(2, 16, 32))


def test_on_a_cpu_attention_is_pytorch_s(caplog):
    assert choose_attention_kernel(LAYERS, 4, CPU, torch.float32) == "torch"
    assert not caplog.records


def test_on_a_gpu_attention_is_triton_s_if_it_runs_in_every_kind_of_layer(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    tried = []

    def on_the_cpu(heads, shape, device, dtype):
        assert device == CUDA
        tried.append((heads, shape))
        try_attention(heads, shape, CPU, dtype)

    try_attention = kernel_choice._try_attention
    monkeypatch.setattr(kernel_choice, "_try_attention", on_the_cpu)
    assert choose_attention_kernel(LAYERS, 4, CUDA, torch.float32) == "triton"
    assert tried == [(4, shape) for shape in LAYERS[:2]]
    (line,) = caplog.records
    assert "triton" in line.getMessage()


def zeros(queries, *_args, **_kwargs):
    return torch.zeros_like(queries)


def zeros_if_causal(queries, *args, causal=False, **options):
    found = attend(queries, *args, causal=causal, **options)
    return torch.zeros_like(found) if causal else found


attend = prefix_attention.prefix_attention


@pytest.mark.parametrize("broken", [raising, zeros, zeros_if_causal])
def test_attention_that_fails_or_computes_something_else_is_not_taken(monkeypatch, broken):
    kernel_choice._try_attention(4, LAYERS[0], CPU, torch.float32)
    monkeypatch.setattr(prefix_attention, "prefix_attention", broken)
    with pytest.raises((RuntimeError, ArithmeticError)):
        kernel_choice._try_attention(4, LAYERS[0], CPU, torch.float32)


def test_where_triton_s_attention_cannot_run_the_log_says_so(caplog, monkeypatch):
    monkeypatch.setattr(kernel_choice, "_try_attention", raising)
    assert choose_attention_kernel(LAYERS, 4, CUDA, torch.float32) == "torch"
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
