"""Products with all kinds of weights, by both kernels, compared with dequantised weights."""

import dataclasses

import pytest
import torch

from engine.model.products import grouped_product, linear
from engine.weights.quantization import QuantizedWeight, StackedWeight, pack, stack
from tests.engine.weights.test_quantization import SCHEMES, quantized, weights


def with_torch(weight):
    return weight


def with_triton(weight):
    if isinstance(weight, StackedWeight):
        return StackedWeight(tuple(with_triton(part) for part in weight.parts))
    if isinstance(weight, QuantizedWeight):
        return dataclasses.replace(weight, kernel="triton")
    return weight


@pytest.fixture(params=[with_torch, with_triton])
def with_kernel(request):
    """Returns a function that sets a weight's kernel."""
    return request.param


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_linear_equals_that_of_the_dequantised_weight(scheme, with_kernel):
    weight, x = quantized(scheme, 24, 64), torch.randn(5, 64)
    expected = x.double() @ weight.dequantize(torch.float64).T
    assert torch.allclose(linear(x, with_kernel(weight)).double(), expected, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_grouped_product_equals_those_of_each_group_even_if_some_are_empty(scheme, with_kernel):
    weight, rows = quantized(scheme, 5, 24, 64), torch.randn(9, 64)
    ends = torch.tensor([0, 4, 4, 8, 9], dtype=torch.int32)
    out = grouped_product(rows, with_kernel(weight), ends, "torch")
    dense = weight.dequantize(torch.float64)
    for row, expert in enumerate([1, 1, 1, 1, 3, 3, 3, 3, 4]):
        expected = rows[row].double() @ dense[expert].T
        assert torch.allclose(out[row].double(), expected, atol=1e-6)


def test_parts_in_different_formats_have_the_right_product(with_kernel):
    parts = [quantized("int4", 8, 64), quantized("int8", 8, 64), weights(8, 64)]
    x = torch.randn(5, 64)
    dense = torch.cat([parts[0].dequantize(x.dtype), parts[1].dequantize(x.dtype), parts[2]])
    assert torch.allclose(linear(x, with_kernel(stack(parts))), x @ dense.T, atol=1e-6)


@pytest.mark.parametrize("kernel", ["torch", "triton"])
def test_experts_with_parts_in_different_formats_have_the_right_product(with_kernel, kernel):
    """Gate and up are NVFP4 with different global scales, and a third part is not quantised."""
    generator = torch.Generator().manual_seed(0)
    codes = pack(torch.randint(0, 16, (3, 8, 64), generator=generator, dtype=torch.uint8))
    scales = (torch.rand(3, 8, 4, generator=generator) + 0.5).to(torch.float8_e4m3fn)
    gate, up = (
        QuantizedWeight("nvfp4", codes, scales, None, 0.01 * (1 + torch.arange(3) + part))
        for part in range(2)
    )
    parts, rows = [gate, up, weights(3, 8, 64)], torch.randn(9, 64, generator=generator)
    dense = torch.cat([gate.dequantize(rows.dtype), up.dequantize(rows.dtype), parts[2]], dim=1)
    whole = StackedWeight(tuple(parts))
    ends = torch.tensor([2, 2, 9], dtype=torch.int32)
    actual = grouped_product(rows, with_kernel(whole), ends, kernel)
    expected = torch.cat([rows[:2] @ dense[0].T, rows[2:] @ dense[2].T])
    assert (actual - expected).abs().max() < 2e-6 * expected.abs().max()
