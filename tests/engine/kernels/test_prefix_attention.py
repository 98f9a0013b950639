import pytest
import torch
from torch.nn import functional as F

from engine.kernels import prefix_attention as module
from engine.kernels.prefix_attention import (
    choose_splits,
    choose_tile,
    plain_prefix_attention,
    prefix_attention,
)
from engine.kernels.target import Target

# Triton's interpreter truncates bfloat16 instead of rounding it.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
HOPPER = Target((9, 0), 132, 227 * 1024)
ADA = Target((8, 9), 128, 99 * 1024)


def random_inputs(heads, kv_heads, count, entries, size, dtype=torch.float32):
    generator = torch.Generator().manual_seed(count)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    # Normed, as in the model, so that the unscaled scores differ by a few units.
    queries = F.normalize(normal(heads, count, size), dim=-1) * 4
    keys = F.normalize(normal(kv_heads, entries, size), dim=-1) * 4
    return queries.to(dtype), keys.to(dtype), normal(kv_heads, entries, size).to(dtype)


def check(queries, keys, values, span=None, **options):
    """Compare the kernel with plain attention in float64."""
    if span is not None:
        span = torch.tensor(span)
    actual = prefix_attention(queries, keys, values, span, **options)
    doubles = (each.double() for each in (queries, keys, values))
    expected = plain_prefix_attention(*doubles, span, **options)
    assert actual.dtype == queries.dtype
    tolerance = TOLERANCE[queries.dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(16, 8, 256), (16, 2, 512), (4, 4, 64), (6, 1, 16)]
)
def test_a_canvas_sees_its_whole_prefix_and_itself(heads, kv_heads, size, dtype):
    check(*random_inputs(heads, kv_heads, 16, 75, size, dtype))


@pytest.mark.parametrize("count", [1, 5, 32, 33])
@pytest.mark.parametrize("entries", [1, 32, 64, 65])
def test_sizes_need_not_be_multiples_of_a_tile(count, entries):
    check(*random_inputs(6, 2, count, entries, 32))


@pytest.mark.parametrize("span", [[0, 1], [0, 90], [3, 40], [31, 33], [32, 64], [89, 90]])
def test_only_entries_of_the_span_are_seen(span):
    queries, keys, values = random_inputs(4, 2, 7, 90, 32)
    keys[:, : span[0]] = values[:, : span[0]] = torch.nan  # not read, let alone computed
    keys[:, span[1] :] = values[:, span[1] :] = torch.nan
    check(queries, keys, values, span)


@pytest.mark.parametrize("window", [None, 1, 8, 33, 500])
@pytest.mark.parametrize("span", [None, [0, 40], [5, 90]])
@pytest.mark.parametrize("count", [1, 8, 40])
def test_causal_queries_see_themselves_and_the_entries_before(count, span, window):
    check(*random_inputs(4, 2, count, 90, 32), span, causal=True, window=window)


def test_caches_may_have_any_strides():
    queries, _, _ = random_inputs(4, 2, 7, 1, 32)
    cache = torch.randn(2, 2, 100, 32, generator=torch.Generator().manual_seed(0)) / 4
    keys, values = cache[0, :, 11:60], cache[1, :, 11:60]
    by_token = queries.transpose(0, 1).contiguous().transpose(0, 1)
    expected = plain_prefix_attention(queries, keys, values)
    actual = prefix_attention(by_token, keys, values)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)
    assert actual.transpose(0, 1).is_contiguous()


def test_scores_may_be_so_large_that_their_exponential_overflows():
    queries, keys, values = random_inputs(2, 1, 3, 70, 32)
    check(queries * 30, keys * 30, values)
    check(-queries * 30, queries[:1].repeat(1, 1, 1) * 30, values[:, :3])


@pytest.mark.parametrize("size", [8, 48])
def test_head_sizes_that_no_tile_has_are_refused(size):
    with pytest.raises(AssertionError):
        prefix_attention(*random_inputs(2, 1, 3, 5, size))


@pytest.fixture(params=[2, 3, 4])
def splits(request, monkeypatch):
    """Split the entries among this many programs."""
    monkeypatch.setattr(module, "choose_splits", lambda *_: request.param)


@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize("span", [None, [0, 1], [0, 90], [3, 40], [31, 33], [89, 90]])
def test_split_entries_have_the_same_result(span):
    queries, keys, values = random_inputs(6, 2, 7, 90, 32)
    if span is not None:
        keys[:, : span[0]] = values[:, : span[0]] = torch.nan
        keys[:, span[1] :] = values[:, span[1] :] = torch.nan
    check(queries, keys, values, span)


@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize("window", [None, 1, 33])
@pytest.mark.parametrize("count", [1, 40])
def test_split_entries_of_causal_queries_have_the_same_result(count, window):
    check(*random_inputs(4, 2, count, 90, 32), [5, 90], causal=True, window=window)


@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_split_entries_of_the_released_head_sizes_have_the_same_result(monkeypatch, dtype):
    monkeypatch.setattr(module, "target_of", lambda _device: HOPPER)
    for heads, kv_heads, size in ((16, 8, 256), (16, 2, 512)):
        check(*random_inputs(heads, kv_heads, 16, 205, size, dtype))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"causal": True, "window": 9}], ids=str)
@pytest.mark.parametrize("count", [1, 20])
def test_segments_attend_to_their_slots_as_each_would_alone(monkeypatch, count, options, splits):
    monkeypatch.setattr(module, "choose_splits", lambda *_: splits)
    spans, slots = [[0, 40], [3, 90], [60, 90]], [3, 0, 2]
    queries = random_inputs(6, 2, 3 * count, 1, 32)[0]
    caches = torch.full((4, 2, 2, 90, 32), torch.nan)  # keys before values
    expected = []
    for number, (slot, (first, end)) in enumerate(zip(slots, spans, strict=True)):
        _, keys, values = random_inputs(6, 2, number, 90, 32)
        caches[slot, 0, :, first:end] = keys[:, first:end]
        caches[slot, 1, :, first:end] = values[:, first:end]
        own = queries[:, number * count : (number + 1) * count]
        doubles = (each.double() for each in (own, keys, values))
        expected.append(plain_prefix_attention(*doubles, torch.tensor([first, end]), **options))
    actual = prefix_attention(
        queries, *caches.unbind(1), torch.tensor(spans), slots=torch.tensor(slots), **options
    )
    torch.testing.assert_close(actual.double(), torch.cat(expected, 1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("target", [ADA, HOPPER])
def test_a_canvas_keeps_most_processors_busy_with_tiles_of_64_rows(target):
    for heads, size in ((16, 256), (16, 512)):
        tile = choose_tile(size, 2, target)
        programs = heads * 256 // tile.rows
        assert tile.rows == 64
        assert 0.9 * target.multiprocessors < programs * choose_splits(programs, target)


def test_a_device_that_is_not_an_nvidia_gpu_has_no_splits():
    assert choose_splits(1, None) == 1
