import pytest
import torch

from engine.kernels import grouped_linear as module
from engine.kernels.dequantise import plain_weights
from engine.kernels.grouped_linear import choose_tile, grouped_linear, plain_grouped_linear
from engine.kernels.target import Target

# Relative to the largest result. Triton's interpreter truncates bfloat16 instead of rounding it.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
ADA = Target((8, 9), 128, 99 * 1024)
HOPPER = Target((9, 0), 132, 227 * 1024)
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


def pretend(monkeypatch, target):
    monkeypatch.setattr(module, "target_of", lambda _device: target)


@pytest.mark.parametrize("target", [ADA, HOPPER], ids=["8.9", "9.0"])
@pytest.mark.parametrize("columns", [1, 11])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_scheme_in_ptx_equals_dense_arithmetic(monkeypatch, scheme, columns, target):
    pretend(monkeypatch, target)
    check(scheme, [7, 0, 20, 13], 70, 352, columns=columns, dtype=torch.bfloat16)


@pytest.mark.parametrize("group", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("scheme", ["int8", "fp8", "int4", "int4 with zeros"])
def test_in_ptx_a_scale_may_have_a_group_of_every_supported_size(monkeypatch, scheme, group):
    pretend(monkeypatch, HOPPER)
    check(scheme, [3, 4], 5, 768, columns=768 // group, dtype=torch.bfloat16)


@pytest.mark.parametrize("inputs", [2, 34, 96, 130])
@pytest.mark.parametrize("scheme", ["int4", "int4 with zeros"])
def test_in_ptx_a_byte_may_hold_codes_at_every_distance(monkeypatch, scheme, inputs):
    pretend(monkeypatch, HOPPER)
    check(scheme, [3, 4], 5, inputs, dtype=torch.bfloat16)


@pytest.mark.parametrize("target", [None, HOPPER], ids=["plain", "PTX"])
@pytest.mark.parametrize("scheme", ["int8", "fp8", "int4", "int4 with zeros", "nvfp4"])
def test_every_code_becomes_the_same_weight_in_both_forms(monkeypatch, scheme, target):
    """Multiplied by the unit matrix, the weights come out as they are.

    In the plain form no product is rounded, because the interpreter would truncate it.
    """
    pretend(monkeypatch, target)
    groups = 256 // 16
    codes = torch.arange(256, dtype=torch.uint8).repeat(2, 1)
    codes[1] = codes[1].roll(5)
    if scheme in ("int4", "int4 with zeros", "nvfp4"):
        codes = codes.reshape(4, 128)
        groups //= 2 if scheme == "nvfp4" else 4
    numbers = torch.arange(codes.shape[0] * groups) % 7
    scales = (numbers + 1 if target else 2.0**numbers).reshape(-1, groups) / 8
    arguments = {"scheme": scheme.removesuffix(" with zeros"), "scales": scales.bfloat16()}
    if scheme == "int8":
        codes = codes.view(torch.int8)
    elif scheme == "fp8":
        codes = torch.where(codes & 127 == 127, 0, codes).view(torch.float8_e4m3fn)
    elif scheme == "int4 with zeros":
        arguments["zeros"] = scales.bfloat16()
    elif scheme == "nvfp4":
        groups = 256 // 16
        scales = (torch.arange(4 * groups, dtype=torch.uint8) + 3).reshape(4, groups)
        arguments["scales"] = scales.view(torch.float8_e4m3fn)
        arguments["global_scale"] = torch.ones(())
    expected = plain_weights(codes, **arguments).float().bfloat16()
    unit = torch.eye(expected.shape[1], dtype=torch.bfloat16)
    assert torch.equal(grouped_linear(unit, codes, None, **arguments).T, expected)


def test_a_canvas_in_a_wide_quantised_linear_has_one_tile_of_rows_on_hopper():
    for_linears = {"rows": 256, "groups": 1}
    assert choose_tile("int8", torch.bfloat16, HOPPER, outputs=8192, **for_linears).block_m == 256
    assert choose_tile("int8", torch.bfloat16, HOPPER, outputs=2816, **for_linears).block_m == 64
    assert choose_tile("int8", torch.bfloat16, ADA, outputs=8192, **for_linears).block_m == 64


def test_the_tile_of_a_canvas_in_a_wide_linear_equals_dense_arithmetic(monkeypatch):
    pretend(monkeypatch, HOPPER)
    monkeypatch.setattr(module, "_HOPPER_LINEAR_OUTPUTS", 70)
    arguments, weights = random_weights("int4", (70, 352), 11, torch.bfloat16)
    x = torch.randn(200, 352, generator=torch.Generator().manual_seed(1)).bfloat16()
    actual, expected = grouped_linear(x, ends=None, **arguments), x.double() @ weights.T
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE[torch.bfloat16]


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
    e2m1 = torch.tensor([[0x80, 0x91, 0xA2, 0xB3, 0xC4, 0xD5, 0xE6, 0xF7]], dtype=torch.uint8)
    weights = plain_weights(
        e2m1, "nvfp4", one.to(torch.float8_e4m3fn), global_scale=torch.tensor(2.0)
    )
    positive = [0, 1, 2, 3, 4, 6, 8, 12]
    assert weights.tolist() == [positive + [-x for x in positive]]
    int4 = torch.tensor([[0xF0, 0x98]], dtype=torch.uint8)
    assert plain_weights(int4, "int4", half).tolist() == [[-4, 0, 3.5, 0.5]]
    assert plain_weights(int4, "int4", half, zeros=one).tolist() == [[-1, 3, 6.5, 3.5]]
    int8 = torch.tensor([[-128, 127]], dtype=torch.int8)
    assert plain_weights(int8, "int8", half).tolist() == [[-64, 63.5]]
