"""Quantised weights: their dequantised values and how far these are from the original weights."""

import pytest
import torch

from engine.weights.quantization import (
    QuantizedWeight,
    StackedWeight,
    UnquantizableError,
    copy_weight,
    pack,
    quantize,
    repack,
    stack,
    unpack,
)

CPU = torch.device("cpu")
SCHEMES = ("int8", "int4", "fp8")


def weights(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def quantized(scheme, *shape, seed=0):
    return quantize(weights(*shape, seed=seed), scheme, CPU)


def test_int8_codes_are_multiplied_by_the_scale_of_their_row():
    weight = QuantizedWeight(
        "int8", torch.tensor([[-128, 3], [7, 0]], dtype=torch.int8), torch.tensor([[0.5], [2.0]])
    )
    assert weight.dequantize(torch.float32).tolist() == [[-64.0, 1.5], [14.0, 0.0]]


@pytest.mark.parametrize(
    ("inputs", "distance"), [(2, 1), (6, 1), (48, 8), (96, 16), (64, 32), (704, 32), (2816, 32)]
)
def test_the_codes_of_a_byte_lie_32_inputs_apart_or_as_many_as_the_inputs_allow(inputs, distance):
    codes = (torch.arange(inputs) % 16).to(torch.uint8).repeat(2, 1)
    packed = pack(codes)
    assert torch.equal(unpack(packed), codes)
    first = packed[:, :distance]
    assert torch.equal(first & 15, codes[:, :distance])
    assert torch.equal(first >> 4, codes[:, distance : 2 * distance])


def test_bytes_with_consecutive_codes_are_repacked():
    codes = (torch.arange(96) % 16).to(torch.uint8).repeat(2, 1)
    consecutive = codes[:, 0::2] | codes[:, 1::2] << 4
    assert torch.equal(repack(consecutive), pack(codes))


def test_int4_codes_less_8_are_multiplied_by_the_scale_of_their_group():
    codes = pack(torch.tensor([[0, 8, 15, 9]], dtype=torch.uint8))
    weight = QuantizedWeight("int4", codes, torch.tensor([[1.0, 10.0]]))
    assert weight.shape == (1, 4)
    assert weight.group_size == 2
    assert weight.dequantize(torch.float32).tolist() == [[-8.0, 0.0, 70.0, 10.0]]


def test_int4_codes_with_zeros_are_scaled_and_the_zero_is_subtracted():
    codes = pack(torch.tensor([[0, 8, 15, 9]], dtype=torch.uint8))
    scales, zeros = torch.tensor([[1.0, 10.0]]), torch.tensor([[0.5, 100.0]])
    weight = QuantizedWeight("int4", codes, scales, zeros)
    assert weight.dequantize(torch.float32).tolist() == [[-0.5, 7.5, 50.0, -10.0]]


def test_nvfp4_codes_are_e2m1_with_two_levels_of_scales():
    codes = pack(torch.arange(16, dtype=torch.uint8)).reshape(1, 8)
    weight = QuantizedWeight(
        "nvfp4", codes, torch.tensor([[2.0]]).to(torch.float8_e4m3fn), None, torch.tensor(0.25)
    )
    positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    expected = [0.5 * value for value in [*positive, *(-value for value in positive)]]
    assert weight.dequantize(torch.float32).tolist() == [expected]


def test_each_expert_has_its_own_global_scale():
    codes = torch.full((2, 1, 8), 0x22, dtype=torch.uint8)
    scales = torch.ones(2, 1, 1).to(torch.float8_e4m3fn)
    weight = QuantizedWeight("nvfp4", codes, scales, None, torch.tensor([1.0, 3.0]))
    assert weight.dequantize(torch.float32)[:, 0, 0].tolist() == [1.0, 3.0]
    assert torch.equal(
        weight.expert(1).dequantize(torch.float32), weight.dequantize(torch.float32)[1]
    )


def test_int8_is_at_most_half_a_step_off():
    dense = weights(40, 96)
    error = (quantize(dense, "int8", CPU).dequantize(torch.float32) - dense).abs()
    step = dense.abs().amax(1, keepdim=True) / 127
    assert (error <= 0.5001 * step).all()


def test_fp8_is_at_most_a_sixteenth_or_half_the_least_step_off():
    dense = weights(40, 96)
    error = (quantize(dense, "fp8", CPU).dequantize(torch.float32) - dense).abs()
    least = dense.abs().amax(1, keepdim=True) / 448 * 2**-9
    assert (error <= torch.maximum(1.0001 * dense.abs() / 16, 0.5001 * least)).all()


def test_int4_is_off_by_at_most_an_eighth_and_mostly_a_fourteenth_of_the_largest():
    dense = weights(40, 96)
    error = (quantize(dense, "int4", CPU).dequantize(torch.float32) - dense).abs()
    largest = dense.unflatten(1, (-1, 32)).abs().amax(-1).repeat_interleave(32, dim=1)
    assert (error <= 0.126 * largest).all()
    assert (error <= 0.072 * largest).float().mean() > 0.98


@pytest.mark.parametrize(("scheme", "most"), [("int8", 0.01), ("fp8", 0.03), ("int4", 0.1)])
def test_normally_distributed_weights_lose_little(scheme, most):
    dense = weights(64, 256)
    error = quantize(dense, scheme, CPU).dequantize(torch.float32) - dense
    assert error.norm() / dense.norm() < most


def test_int4_is_better_than_with_one_fixed_range_of_codes():
    dense = weights(64, 256)
    error = (quantize(dense, "int4", CPU).dequantize(torch.float32) - dense).norm()
    groups = dense.unflatten(1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True) / 7
    plain = ((groups / scale).round() * scale - groups).norm()
    assert error < 0.97 * plain


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_of_zeros_stay_zeros(scheme):
    assert not quantize(torch.zeros(3, 64), scheme, CPU).dequantize(torch.float32).any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_experts_are_quantised_as_if_each_were_alone(scheme):
    dense = weights(3, 8, 64)
    together = quantize(dense, scheme, CPU)
    for index in range(3):
        alone = quantize(dense[index], scheme, CPU)
        assert torch.equal(
            together.expert(index).dequantize(torch.float32), alone.dequantize(torch.float32)
        )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_matrix_of_many_rows_is_quantised_as_if_its_parts_were_alone(scheme):
    dense = weights(20_000, 32)
    whole = quantize(dense, scheme, CPU)
    for span in (slice(0, 100), slice(16_300, 16_500), slice(19_900, 20_000)):
        alone = quantize(dense[span], scheme, CPU)
        for name, tensor in whole.rows(span).tensors().items():
            assert torch.equal(tensor.float(), alone.tensors()[name].float())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bfloat16_is_quantised_like_the_same_numbers_in_float32(scheme):
    dense = weights(8, 64).bfloat16()
    one, other = quantize(dense, scheme, CPU), quantize(dense.float(), scheme, CPU)
    assert torch.equal(one.dequantize(torch.float32), other.dequantize(torch.float32))


def test_rows_that_do_not_divide_into_int4_groups_are_refused():
    with pytest.raises(UnquantizableError, match="a multiple of 32 input features, not 48"):
        quantize(weights(8, 48), "int4", CPU)


@pytest.mark.parametrize(("scheme", "bits"), [("int8", 8), ("fp8", 8), ("int4", 4.5)])
def test_nbytes_counts_codes_and_scales(scheme, bits):
    weight = quantized(scheme, 16, 2816)
    assert weight.nbytes == 16 * (2816 * bits / 8 + (0 if scheme == "int4" else 2))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parts_of_equal_layout_become_one_weight(scheme):
    parts = [quantized(scheme, 8, 64, seed=seed) for seed in range(3)]
    whole = stack(parts)
    assert isinstance(whole, QuantizedWeight)
    expected = torch.cat([part.dequantize(torch.float32) for part in parts])
    assert torch.equal(whole.dequantize(torch.float32), expected)
    assert torch.equal(whole.rows(slice(8, 16)).dequantize(torch.float32), expected[8:16])


def test_parts_of_unequal_layout_stay_separate():
    parts = [quantized("int4", 8, 64), quantized("int8", 8, 64), weights(8, 64)]
    whole = stack(parts)
    assert isinstance(whole, StackedWeight)
    assert whole.shape == (24, 64)
    assert whole.nbytes == sum(part.nbytes for part in parts)


def test_parts_with_different_global_scales_stay_separate():
    codes, scales = torch.zeros(2, 8, dtype=torch.uint8), torch.ones(2, 1).to(torch.float8_e4m3fn)
    one = QuantizedWeight("nvfp4", codes, scales, None, torch.tensor(1.0))
    other = QuantizedWeight("nvfp4", codes, scales, None, torch.tensor(2.0))
    assert isinstance(stack([one, one]), QuantizedWeight)
    assert isinstance(stack([one, other]), StackedWeight)


def test_a_weight_is_copied_into_a_view_of_a_larger_weight():
    whole, part = quantized("int4", 4, 8, 64), quantized("int4", 8, 64, seed=1)
    copy_weight(whole.expert(2), part)
    assert torch.equal(whole.dequantize(torch.float32)[2], part.dequantize(torch.float32))
