"""The kernels between a layer's products: their results are those of plain operations."""

import pytest
import torch

from engine.kernels.combine import combine, plain_combine
from engine.kernels.condition import condition, plain_condition
from engine.kernels.dispatch import dispatch, plain_dispatch
from engine.kernels.gated import gated, plain_gated
from engine.kernels.route import plain_route, route
from engine.kernels.write_heads import plain_write_heads, write_heads

EPS = 1e-6
TYPES = [torch.float32, torch.bfloat16]


def random(*shape, dtype=torch.float32, mean=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator) + mean).to(dtype)


def close(actual, expected):
    """Compares within rounding: plain operations in bfloat16 round after each of them."""
    if expected.dtype == torch.bfloat16:
        tolerance = {"rtol": 0.02, "atol": 0.02 * float(expected.abs().max())}
    else:
        tolerance = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(actual, expected, **tolerance)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("query_heads", "kv_heads", "parts", "size", "slots"),
    [(4, 2, 2, 16, [0]), (4, 1, 1, 24, [2, 0]), (6, 3, 2, 16, [2, 0])],
)
def test_heads_are_normed_rotated_and_written(dtype, query_heads, kv_heads, parts, size, slots):
    heads, rows = query_heads + parts * kv_heads, 5 * len(slots)
    projected = random(rows, heads * size, dtype=dtype)
    weights = [random(size, dtype=dtype, mean=1, seed=seed) for seed in (1, 2)]
    angles = random(rows, size // 2).repeat(1, 2)
    rope = angles.cos().to(dtype), angles.sin().to(dtype)
    behind = torch.tensor([7, 30][: len(slots)])
    caches = [torch.full((3, 2, kv_heads, 40, size), torch.nan, dtype=dtype) for _ in range(2)]
    actual, expected = (
        function(
            projected,
            *weights,
            rope,
            cache,
            torch.tensor(slots),
            behind,
            query_heads=query_heads,
            eps=EPS,
        )
        for function, cache in zip((write_heads, plain_write_heads), caches, strict=True)
    )
    close(actual, expected)
    assert torch.equal(caches[0].isnan(), caches[1].isnan())  # nothing else was written
    close(*(each[~each.isnan()] for each in caches))


def routing_inputs(rows, size, experts, dtype):
    return (
        random(rows, size, dtype=dtype, seed=1),
        random(rows, size, dtype=dtype, seed=2) * 5,
        *(random(size, dtype=dtype, mean=1, seed=seed) for seed in (3, 4, 5, 6)),
        random(experts, size, dtype=dtype, seed=7),
        random(experts, dtype=dtype, mean=1, seed=8),
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("rows", "size", "experts", "per_token"),
    [(1, 48, 3, 1), (13, 200, 4, 2), (13, 200, 128, 8), (1030, 16, 20, 5)],
)
def test_rows_are_routed(dtype, experts, per_token, rows, size):
    inputs = routing_inputs(rows, size, experts, dtype)
    actual = route(*inputs, per_token=per_token, eps=EPS)
    expected = plain_route(*inputs, per_token=per_token, eps=EPS)
    for name in ("x", "dense", "sparse"):
        close(getattr(actual, name), getattr(expected, name))
    # Rounding decides between experts whose scores are nearly equal.
    same = (actual.experts == expected.experts).all(1)
    assert same.float().mean() >= (0.999 if dtype == torch.float32 else 0.5)
    torch.testing.assert_close(
        actual.shares[same],
        expected.shares[same],
        rtol=1e-4 if dtype == torch.float32 else 0.05,
        atol=1e-5 if dtype == torch.float32 else 0.02,
    )


def test_of_experts_with_equal_scores_the_first_are_chosen():
    inputs = list(routing_inputs(2, 16, 6, torch.float32))
    inputs[6] = inputs[6][:1].repeat(6, 1)
    routed = route(*inputs, per_token=3, eps=EPS)
    assert routed.experts.tolist() == [[0, 1, 2]] * 2


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_damaged_rows_have_experts_that_exist_and_leave_others_as_they_are(value):
    inputs = routing_inputs(5, 16, 6, torch.float32)
    expected = route(*inputs, per_token=3, eps=EPS)
    inputs[0][2, 3] = value
    actual = route(*inputs, per_token=3, eps=EPS)
    assert not actual.x[2].isfinite().all()
    assert ((actual.experts >= 0) & (actual.experts < 6)).all()
    others = torch.arange(5) != 2
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours[others], theirs[others])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "per_token", "groups"), [(1, 1, 3), (9, 2, 4), (70, 8, 128)])
def test_rows_are_dispatched_to_their_experts(dtype, rows, per_token, groups):
    x = random(rows, 24, dtype=dtype)
    experts = torch.stack(
        [
            torch.randperm(groups, generator=torch.Generator().manual_seed(row))[:per_token]
            for row in range(rows)
        ]
    ).int()
    for actual, expected in zip(
        dispatch(x, experts, groups), plain_dispatch(x, experts, groups), strict=True
    ):
        assert torch.equal(actual, expected)


def test_all_rows_may_choose_one_expert_more_than_once():
    x, experts = random(4, 24), torch.full((4, 2), 2, dtype=torch.int32)
    for actual, expected in zip(
        dispatch(x, experts, 3), plain_dispatch(x, experts, 3), strict=True
    ):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shapes", [[(9, 96)], [(3, 10), (17, 600)], [(8, 512), (5, 512)]])
def test_gates_are_applied_to_one_product_or_two(dtype, shapes):
    products = [random(*shape, dtype=dtype) * 4 for shape in shapes]
    for actual, product in zip(gated(*products), products, strict=True):
        close(actual, plain_gated(product))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy
def test_gates_may_be_large_or_not_finite():
    product = torch.ones(1, 16)
    product[0, :4] = torch.tensor([1e4, -1e4, float("nan"), float("inf")])
    (actual,) = gated(product)
    torch.testing.assert_close(actual, plain_gated(product), equal_nan=True)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("per_token", "encoded", "size"), [(1, 0, 16), (5, 3, 200)])
def test_both_mlps_are_added_normed_and_scaled(dtype, per_token, encoded, size):
    rows = 6
    x, dense = (random(rows, size, dtype=dtype, seed=seed) for seed in (1, 2))
    sparse = random(rows * per_token, size, dtype=dtype)
    order = torch.randperm(rows * per_token, generator=torch.Generator().manual_seed(0))
    inputs = (
        *(x, dense, sparse, order.int().view(rows, per_token)),
        random(rows, per_token).softmax(1),
        tuple(random(size, dtype=dtype, mean=1, seed=seed) for seed in (3, 4, 5, 6)),
        (torch.tensor([0.5], dtype=dtype), torch.tensor([2.0], dtype=dtype)),
    )
    for actual, expected in zip(
        combine(*inputs, encoded, EPS), plain_combine(*inputs, encoded, EPS), strict=True
    ):
        close(actual, expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_embeddings_are_scaled_conditioned_and_normed(dtype):
    inputs = (*(random(5, 200, dtype=dtype, seed=seed) for seed in (1, 2)), random(200, mean=1))
    for actual, expected in zip(
        condition(*inputs[:2], inputs[2].to(dtype), scale=6.5, eps=EPS),
        plain_condition(*inputs[:2], inputs[2].to(dtype), scale=6.5, eps=EPS),
        strict=True,
    ):
        close(actual, expected)
