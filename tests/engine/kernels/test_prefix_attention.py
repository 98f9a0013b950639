import pytest
import torch
from torch.nn import functional as F

from engine.kernels.prefix_attention import plain_prefix_attention, prefix_attention

# Triton's interpreter cuts bfloat16 off instead of rounding it.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def random_inputs(heads, kv_heads, count, places, size, dtype=torch.float32):
    generator = torch.Generator().manual_seed(count)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    # As norms make them, so that scores, which are not scaled, are a few units apart.
    queries = F.normalize(normal(heads, count, size), dim=-1) * 4
    keys = F.normalize(normal(kv_heads, places, size), dim=-1) * 4
    return queries.to(dtype), keys.to(dtype), normal(kv_heads, places, size).to(dtype)


def check(queries, keys, values, span=None, **options):
    """The kernel against every score in float64."""
    if span is not None:
        span = torch.tensor(span)
    found = prefix_attention(queries, keys, values, span, **options)
    doubles = (each.double() for each in (queries, keys, values))
    expected = plain_prefix_attention(*doubles, span, **options)
    assert found.dtype == queries.dtype
    tolerance = TOLERANCE[queries.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(16, 8, 256), (16, 2, 512), (4, 4, 64), (6, 1, 16)]
)
def test_a_canvas_sees_all_of_its_prefix_and_of_itself(heads, kv_heads, size, dtype):
    check(*random_inputs(heads, kv_heads, 16, 75, size, dtype))


@pytest.mark.parametrize("count", [1, 5, 32, 33])
@pytest.mark.parametrize("places", [1, 32, 64, 65])
def test_sizes_that_fill_no_tile(count, places):
    check(*random_inputs(6, 2, count, places, 32))


@pytest.mark.parametrize("span", [[0, 1], [0, 90], [3, 40], [31, 33], [32, 64], [89, 90]])
def test_only_places_of_the_span_are_seen(span):
    queries, keys, values = random_inputs(4, 2, 7, 90, 32)
    keys[:, : span[0]] = values[:, : span[0]] = torch.nan  # not read, let alone computed
    keys[:, span[1] :] = values[:, span[1] :] = torch.nan
    check(queries, keys, values, span)


@pytest.mark.parametrize("window", [None, 1, 8, 33, 500])
@pytest.mark.parametrize("span", [None, [0, 40], [5, 90]])
@pytest.mark.parametrize("count", [1, 8, 40])
def test_causal_queries_see_themselves_and_what_is_before(count, span, window):
    check(*random_inputs(4, 2, count, 90, 32), span, causal=True, window=window)


def test_caches_are_read_where_they_lie_whatever_their_strides():
    queries, _, _ = random_inputs(4, 2, 7, 1, 32)
    cache = torch.randn(2, 2, 100, 32, generator=torch.Generator().manual_seed(0)) / 4
    keys, values = cache[0, :, 11:60], cache[1, :, 11:60]
    by_token = queries.transpose(0, 1).contiguous().transpose(0, 1)
    expected = plain_prefix_attention(queries, keys, values)
    found = prefix_attention(by_token, keys, values)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert found.transpose(0, 1).is_contiguous()


def test_scores_that_overflow_an_exponential_do_no_harm():
    queries, keys, values = random_inputs(2, 1, 3, 70, 32)
    check(queries * 30, keys * 30, values)
    check(-queries * 30, queries[:1].repeat(1, 1, 1) * 30, values[:, :3])


@pytest.mark.parametrize("size", [8, 48])
def test_head_sizes_that_no_tile_consists_of_are_refused(size):
    with pytest.raises(AssertionError):
        prefix_attention(*random_inputs(2, 1, 3, 5, size))
