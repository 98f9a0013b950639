import pytest
import torch

from engine.kernels.dequantise import plain_weights
from engine.kernels.grouped_linear import grouped_linear, plain_grouped_linear

# Relative to the largest result. Triton's interpreter truncates bfloat16 instead of rounding it.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
SCHEMES = ["dense", "int8", "fp8", "int4", "int4 with zeros", "nvfp4"]


def random_weights(scheme, shape, columns, dtype):
    """Returns arguments of grouped_linear, and the float64 weights that they stand for."""
    generator = torch.Generator().manual_seed(0)
    *_, inputs = shape

    def uniform(size):
        return torch.rand(size, generator=generator) + 0.5

    if scheme == "dense":
        weights = torch.randn(shape, generator=generator).to(dtype)
        return {"weights": weights}, weights.double()
    if scheme == "nvfp4":
        columns = inputs // 16
    scales_shape = (*shape[:-1], columns)
    arguments = {"scheme": scheme.removesuffix(" with zeros"), "scales": uniform(scales_shape)}
    if scheme == "int8":
        codes = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
    elif scheme == "fp8":
        codes = torch.randint(0, 127, shape, generator=generator, dtype=torch.uint8)
        codes += 128 * torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8)
        codes = codes.view(torch.float8_e4m3fn)  # all values except for the two NaNs
    else:
        packed = (*shape[:-1], inputs // 2)
        codes = torch.randint(0, 256, packed, generator=generator, dtype=torch.uint8)
    if scheme == "int4 with zeros":
        arguments["zeros"] = 8 * uniform(scales_shape)
    if scheme == "nvfp4":
        arguments["scales"] = arguments["scales"].to(torch.float8_e4m3fn)
        arguments["global_scale"] = uniform(shape[:-2])
    return {"weights": codes, **arguments}, plain_weights(codes, **arguments)


def check(scheme, sizes, outputs, inputs, columns=1, dtype=torch.float32):
    """Compare the kernel with dense arithmetic in float64. `sizes` are the groups' rows."""
    shape = (len(sizes), outputs, inputs)
    arguments, weights = random_weights(scheme, shape, columns, dtype)
    ends = torch.tensor(sizes).cumsum(0).int()
    x = torch.randn(sum(sizes), inputs, generator=torch.Generator().manual_seed(1)).to(dtype)
    actual = grouped_linear(x, ends=ends, **arguments)
    expected = plain_grouped_linear(x.double(), weights, ends)
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_scheme_equals_dense_arithmetic(scheme, dtype):
    check(scheme, [7, 0, 20, 13], 70, 352, columns=11, dtype=dtype)


@pytest.mark.parametrize(
    "sizes",
    [
        [1],
        [0, 0, 5],
        [5, 0, 0],
        [16] * 4,
        [40, 0, 1],
        [0, 64, 0],
        [130, 3],
        [2] * 130,
        [0] * 50 + [9],
    ],
    ids=str,
)
def test_groups_may_have_any_sizes(sizes):
    check("dense", sizes, 9, 33)


@pytest.mark.parametrize("outputs", [1, 64, 129])
@pytest.mark.parametrize("inputs", [2, 34, 128, 130])
@pytest.mark.parametrize("scheme", ["dense", "int8", "fp8", "int4", "int4 with zeros"])
def test_sizes_need_not_be_multiples_of_a_tile(scheme, outputs, inputs):
    check(scheme, [3, 18], outputs, inputs)


@pytest.mark.parametrize("scheme", ["int8", "fp8", "int4", "int4 with zeros"])
@pytest.mark.parametrize("group", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_scale_may_have_a_group_of_every_supported_size(scheme, group, dtype):
    check(scheme, [3, 4], 5, 768, columns=768 // group, dtype=dtype)


def test_groups_of_a_size_that_does_not_fit_tiles_are_refused():
    with pytest.raises(AssertionError):
        check("int8", [3], 5, 96, columns=2)


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float16])
def test_scales_may_have_16_bits(scale_dtype):
    arguments, _ = random_weights("int8", (1, 5, 64), 2, torch.float32)
    arguments["scales"] = arguments["scales"].to(scale_dtype)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    actual = grouped_linear(x, ends=torch.tensor([3], dtype=torch.int32), **arguments)
    weights = plain_weights(arguments["weights"], "int8", arguments["scales"])
    torch.testing.assert_close(actual, (x.double() @ weights[0].T).float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rows", [1, 100])
def test_without_groups_the_product_is_a_linear_of_one_weight(scheme, rows):
    arguments, weights = random_weights(scheme, (70, 352), 11, torch.float32)
    x = torch.randn(rows, 352, generator=torch.Generator().manual_seed(1))
    actual = grouped_linear(x, ends=None, **arguments)
    expected = x.double() @ weights.T
    assert (actual - expected).abs().max() < 1e-6 * expected.abs().max()


def test_rows_may_be_a_strided_view():
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    actual = grouped_linear(x[::2, :32], weights, None)
    torch.testing.assert_close(actual, x[::2, :32] @ weights.T)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_product_of_no_rows_has_no_rows(scheme):
    arguments, _ = random_weights(scheme, (2, 70, 352), 11, torch.float32)
    ends = torch.zeros(2, dtype=torch.int32)
    assert grouped_linear(torch.zeros(0, 352), ends=ends, **arguments).shape == (0, 70)


def test_codes_stand_for_the_weights_of_their_scheme():
    one, half = torch.tensor([[1.0]]), torch.tensor([[0.5]])
    e2m1 = torch.tensor([[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]], dtype=torch.uint8)
    weights = plain_weights(
        e2m1, "nvfp4", one.to(torch.float8_e4m3fn), global_scale=torch.tensor(2.0)
    )
    positive = [0, 1, 2, 3, 4, 6, 8, 12]
    assert weights.tolist() == [positive + [-x for x in positive]]
    int4 = torch.tensor([[0xF0, 0x98]], dtype=torch.uint8)
    assert plain_weights(int4, "int4", half).tolist() == [[-4, 3.5, 0, 0.5]]
    assert plain_weights(int4, "int4", half, zeros=one).tolist() == [[-1, 6.5, 3, 3.5]]
    int8 = torch.tensor([[-128, 127]], dtype=torch.int8)
    assert plain_weights(int8, "int8", half).tolist() == [[-64, 63.5]]
