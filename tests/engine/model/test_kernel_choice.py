"""The choice of kernels, on a CPU on which Triton's interpreter stands in for a GPU."""

import logging

import pytest
import torch

from bench.random_model import Shape, write_random_model
from engine.config import EngineConfig
from engine.device import DeviceError
from engine.kernels import (
    combine,
    condition,
    dispatch,
    gated,
    grouped_linear,
    prefix_attention,
    route,
    write_heads,
)
from engine.loading import build_denoiser
from engine.model import kernel_choice, kernel_trials
from engine.model.diffusion_gemma import DiffusionGemma
from engine.model.experts import Experts, Routing
from engine.model.kernel_choice import (
    choose_attention_kernel,
    choose_layer_kernel,
    choose_product_kernels,
)
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
def test_torch_product_is_preferred_if_it_never_makes_the_host_wait(
    monkeypatch, capability, dtype, best
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    first, second = kernel_choice._candidates(CUDA, dtype)
    assert first == best
    assert {first, second} == {"torch", "triton"}


def test_on_a_cpu_no_kernel_is_tried_and_nothing_is_logged(experts, caplog):
    caplog.set_level(logging.INFO)
    choose(experts)
    assert {each.kernel for each in experts} == {"torch"}
    assert not caplog.records


@pytest.mark.parametrize("order", [("triton", "torch"), ("torch", "triton")], ids=str)
def test_all_layers_have_the_first_kernel_that_runs_and_it_is_logged(
    experts, caplog, monkeypatch, order
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(kernel_choice, "_candidates", lambda *_: order)
    assert choose(experts)  # the host waits in neither kernel
    assert {each.kernel for each in experts} == {order[0]}
    (line,) = caplog.records
    assert order[0] in line.getMessage()


class FakeClock:
    """Says how long each kernel takes, after running it."""

    def __init__(self, monkeypatch, **times):
        self.times = times
        monkeypatch.setattr(kernel_choice, "_clock", lambda _device: self)

    def __call__(self, work):
        work()
        return next(self.results)

    def of(self, *kernels):
        self.results = iter([self.times[kernel] for kernel in kernels])


@pytest.mark.parametrize("faster", ["triton", "torch"])
def test_of_two_products_that_never_make_the_host_wait_the_faster_one_is_taken(
    experts, caplog, monkeypatch, faster
):
    caplog.set_level(logging.INFO)
    order = ("torch", "triton")
    monkeypatch.setattr(kernel_choice, "_candidates", lambda *_: order)
    clock = FakeClock(monkeypatch, **{"triton": 2.0, "torch": 2.0, faster: 1.0})
    clock.of(*order)
    assert choose(experts)
    assert {each.kernel for each in experts} == {faster}
    (line,) = caplog.records
    assert line.getMessage().startswith(f"experts: {faster}'s grouped product (torch ")


def test_a_product_that_makes_the_host_wait_is_not_timed(experts, monkeypatch):
    monkeypatch.setattr(kernel_choice, "_candidates", lambda *_: ("triton", "torch"))
    monkeypatch.setattr(kernel_choice, "_clock", lambda _device: raising)
    assert choose(experts)
    assert {each.kernel for each in experts} == {"triton"}


@pytest.mark.parametrize("faster", ["triton", "torch"])
def test_of_two_attentions_the_one_that_is_faster_in_all_layers_is_taken(
    caplog, monkeypatch, faster
):
    caplog.set_level(logging.INFO)
    timed = kernel_choice._timed_attention
    monkeypatch.setattr(kernel_choice, "_CONTEXT", 40)
    monkeypatch.setattr(kernel_choice, "try_attention", lambda *_: None)
    monkeypatch.setattr(
        kernel_choice,
        "_timed_attention",
        lambda heads, shape, _device, dtype: timed(heads, shape, CPU, dtype),
    )
    FakeClock(monkeypatch, **{"triton": 2.0, "torch": 2.0, faster: 1.0}).of("triton", "torch")
    assert choose_attention_kernel(LAYERS, 4, CUDA, torch.float32) == faster
    (line,) = caplog.records
    assert line.getMessage().startswith(f"attention: {faster}'s (triton ")


def raising(*_args, **_kwargs):
    raise RuntimeError("no compiler")


def wrong(rows, weights, ends):
    return torch.zeros(rows.shape[0], weights.shape[1])


def not_numbers(rows, weights, ends):
    return torch.full((rows.shape[0], weights.shape[1]), torch.nan)


@pytest.mark.parametrize("broken", [raising, wrong, not_numbers])
def test_a_kernel_that_fails_or_computes_wrong_results_is_passed_over(
    experts, caplog, monkeypatch, broken
):
    monkeypatch.setattr(kernel_choice, "_candidates", lambda *_: ("triton", "torch"))
    monkeypatch.setattr(grouped_linear, "grouped_linear", broken)
    assert not choose(experts)  # the host waits in torch's: it would be preferred otherwise
    assert {each.kernel for each in experts} == {"torch"}
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert "triton" in line.getMessage()


def test_an_error_is_raised_if_no_kernel_runs(experts, monkeypatch):
    monkeypatch.setattr(kernel_choice, "_candidates", lambda *_: ("triton", "torch"))
    monkeypatch.setattr(kernel_trials, "grouped_mm", raising)
    with pytest.raises(DeviceError, match="cpu"):
        choose(experts)


@torch.inference_mode()
def test_experts_have_the_same_results_with_either_product(experts):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(33, 48, generator=generator)
    scores = torch.rand(33, 5, generator=generator)
    scores[:, 3] = 0.0  # no token chooses this expert
    routing = Routing(scores.topk(2).indices, torch.rand(33, 2, generator=generator))
    plain = experts[0](x, routing)
    experts[0].kernel = "triton"
    torch.testing.assert_close(experts[0](x, routing), plain)


def test_the_layers_of_a_loaded_model_have_the_chosen_product(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_choice, "_candidates", lambda *_: ("triton", "torch"))
    folder = write_random_model(tmp_path, Shape(layers="sf", canvas=8))
    model = build_denoiser(EngineConfig(model=str(folder), device="cpu")).model
    assert [layer.experts.kernel for layer in model.each_layer()] == ["triton", "triton"]


LAYERS = (LayerShape(2, 16, 32), LayerShape(1, 32, None), LayerShape(2, 16, 32))


def test_attention_on_a_cpu_is_that_of_pytorch(caplog):
    assert choose_attention_kernel(LAYERS, 4, CPU, torch.float32) == "torch"
    assert not caplog.records


def test_attention_on_a_gpu_is_that_of_triton_if_it_runs_in_all_kinds_of_layers(
    caplog, monkeypatch
):
    caplog.set_level(logging.INFO)
    tried = []

    def on_the_cpu(heads, shape, device, dtype):
        assert device == CUDA
        tried.append((heads, shape))
        try_attention(heads, shape, CPU, dtype)

    try_attention = kernel_trials.try_attention
    monkeypatch.setattr(kernel_choice, "try_attention", on_the_cpu)
    monkeypatch.setattr(kernel_choice, "_timed_attention", lambda *_: None)
    monkeypatch.setattr(kernel_choice, "_clock", lambda _device: None)
    assert choose_attention_kernel(LAYERS, 4, CUDA, torch.float32) == "triton"
    assert tried == [(4, shape) for shape in LAYERS[:2]]
    (line,) = caplog.records
    assert "triton" in line.getMessage()


def zeros(queries, *_args, **_kwargs):
    return torch.zeros_like(queries)


def zeros_if_causal(queries, *args, causal=False, **options):
    attended = attend(queries, *args, causal=causal, **options)
    return torch.zeros_like(attended) if causal else attended


def first_slot(*args, slots=None, **options):
    slots = None if slots is None else torch.zeros_like(slots)
    return attend(*args, slots=slots, **options)


def same_span(*args, slots=None, **options):
    if slots is not None and not options:
        args = (*args[:3], args[3][:1].expand(2, 2).contiguous())
    return attend(*args, slots=slots, **options)


attend = prefix_attention.prefix_attention


@pytest.mark.parametrize("broken", [raising, zeros, zeros_if_causal, first_slot, same_span])
def test_attention_that_fails_or_computes_wrong_results_is_not_chosen(monkeypatch, broken):
    kernel_trials.try_attention(4, LAYERS[0], CPU, torch.float32)
    monkeypatch.setattr(prefix_attention, "prefix_attention", broken)
    with pytest.raises((RuntimeError, ArithmeticError)):
        kernel_trials.try_attention(4, LAYERS[0], CPU, torch.float32)


def test_a_warning_is_logged_if_the_attention_of_triton_cannot_run(caplog, monkeypatch):
    monkeypatch.setattr(kernel_choice, "try_attention", raising)
    assert choose_attention_kernel(LAYERS, 4, CUDA, torch.float32) == "torch"
    (line,) = caplog.records
    assert line.levelno == logging.WARNING


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    shape = Shape(layers="ssf", canvas=8)
    return str(write_random_model(tmp_path_factory.mktemp("layers"), shape))


@pytest.fixture
def on_a_gpu(folder, monkeypatch):
    """Returns a model that says that it is on a GPU. The kernels are tried on the CPU."""
    monkeypatch.setattr(kernel_trials, "_ROUTED_ROWS", (5,))
    try_layer = kernel_trials.try_layer
    monkeypatch.setattr(
        kernel_choice, "try_layer", lambda layer, _device, dtype: try_layer(layer, CPU, dtype)
    )

    def load(**options):
        model = build_denoiser(EngineConfig(model=folder, device="cpu", **options)).model
        monkeypatch.setattr(DiffusionGemma, "device", CUDA)
        return model

    return load


def test_on_a_cpu_layers_keep_the_operations_of_pytorch(folder, caplog):
    model = build_denoiser(EngineConfig(model=folder, device="cpu")).model
    assert {layer.kernel for layer in model.each_layer()} == {"torch"}
    assert "norms" not in caplog.text


def test_on_a_gpu_all_layers_have_the_kernels_of_triton_if_these_run(on_a_gpu, caplog):
    caplog.set_level(logging.INFO)
    model = on_a_gpu()
    caplog.clear()
    choose_layer_kernel(model)
    assert {layer.kernel for layer in model.each_layer()} == {model.layer_kernel} == {"triton"}
    (line,) = caplog.records
    assert "triton" in line.getMessage()


def test_a_quantised_router_is_dequantised_for_the_kernel_that_has_its_product(on_a_gpu):
    model = on_a_gpu(quantize_rest="int8", quantized_cache=False)
    router = model.each_layer()[0].router
    expected = router.proj.dequantize(torch.float32)
    choose_layer_kernel(model)
    assert torch.equal(router.proj, expected)


KERNELS = {  # each kernel's function, by its module
    "write_heads": write_heads,
    "route": route,
    "dispatch": dispatch,
    "gated": gated,
    "combine": combine,
    "condition": condition,
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("broken", ["raises", "is off"])
def test_if_a_kernel_of_the_layers_fails_all_layers_keep_pytorch(
    on_a_gpu, caplog, monkeypatch, name, broken
):
    model, kernel = on_a_gpu(), getattr(KERNELS[name], name)
    caplog.clear()

    def off(*args, **options):
        result = kernel(*args, **options)
        (result if name == "write_heads" else result[0]).mul_(1.1)
        return result

    monkeypatch.setattr(KERNELS[name], name, raising if broken == "raises" else off)
    choose_layer_kernel(model)
    assert {layer.kernel for layer in model.each_layer()} == {"torch"}
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
