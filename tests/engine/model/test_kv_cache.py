"""The KV cache and its snapshots: a restored cache works as if it had never held anything else."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.model.kv_cache import KVCache, new_caches
from engine.sizing.dimensions import LayerShape

WINDOW, SLACK = 8, 5
LAYERS = (LayerShape(2, 4, WINDOW), LayerShape(1, 6, None))


def new_cache():
    return KVCache(
        LAYERS,
        capacity=64,
        pass_tokens=16,
        dtype=torch.float32,
        device=torch.device("cpu"),
        slack=SLACK,
    )


def token_rows(index, tokens):
    """Returns keys and values [K, T, d] that differ for each token and layer."""
    layer = LAYERS[index]
    rows = torch.tensor(tokens, dtype=torch.float32)[None, :, None] + 0.25 * index
    keys = rows.expand(layer.kv_heads, -1, layer.head_size)
    return keys, -keys


def encode(cache, tokens):
    for index in range(len(LAYERS)):
        cache.write(index, *token_rows(index, tokens))
    cache.advance(len(tokens))


def seen(cache):
    """Returns the stored keys that a new token sees in each layer."""
    layers = []
    for index in range(len(LAYERS)):
        keys, values = cache.write(index, *token_rows(index, [99]))
        assert torch.equal(keys, -values)
        layers.append(keys[0, :-1, 0].tolist())
    return layers


def expected(length):
    tokens = [float(t) for t in range(length)]
    return [tokens[-(WINDOW - 1) :] if length else [], [t + 0.25 for t in tokens]]


def cache_of(length, chunk=3):
    cache = new_cache()
    for start in range(0, length, chunk):
        encode(cache, list(range(start, min(start + chunk, length))))
    return cache


@pytest.mark.parametrize("length", [0, 1, 7, 8, 12, 13, 30])
def test_a_sliding_layer_sees_its_window_and_a_full_layer_sees_everything(length):
    assert seen(cache_of(length)) == expected(length)


@pytest.mark.parametrize("length", [1, 7, 12, 13, 30])
def test_a_snapshot_can_be_restored_to_every_length_from_its_shortest_on(length):
    snapshot = cache_of(length).snapshot()
    assert snapshot.shortest == (0 if length <= WINDOW - 1 + SLACK else length - SLACK)
    for cut in range(max(snapshot.shortest, 1), length + 1):
        cache = cache_of(23)  # other tokens, which have to go
        cache.restore(snapshot, cut)
        assert seen(cache) == expected(cut)
        for start in range(cut, 40, 4):
            encode(cache, list(range(start, start + 4)))
            assert seen(cache) == expected(start + 4)


def test_a_snapshot_of_a_cut_cache_knows_its_shortest_length():
    cache = new_cache()
    cache.restore(cache_of(30).snapshot(), 26)
    snapshot = cache.snapshot()
    assert snapshot.shortest == 25  # as before the cut: the first stored token is the same
    cache.restore(snapshot, 25)
    assert seen(cache) == expected(25)


def test_a_snapshot_does_not_change_with_its_cache():
    cache = cache_of(10)
    snapshot = cache.snapshot()
    cache.clear()
    encode(cache, [50, 51, 52])
    cache.restore(snapshot, 10)
    assert seen(cache) == expected(10)
    assert snapshot.nbytes == cache.stored_nbytes


def test_advance_allocates_nothing():
    cache, operations = cache_of(30), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if not func.is_view:
                operations.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        cache.advance(3)
    assert set(operations) == {torch.ops.aten.copy_.default}


def test_caches_that_are_made_together_are_parts_of_the_same_tensors():
    sizes = {"capacity": 64, "pass_tokens": 16, "dtype": torch.float32, "slack": SLACK}
    caches = new_caches(3, LAYERS, device=torch.device("cpu"), **sizes)
    for cache in caches:
        cache.clear()
    encode(caches[1], list(range(20)))
    assert seen(caches[1]) == expected(20)
    assert seen(caches[0]) == seen(caches[2]) == expected(0)
    for index, layer in enumerate(LAYERS):
        shared = caches[0].shared[index]
        assert shared.shape[:3] == (3, 2, layer.kv_heads)
        assert all(cache.shared[index] is shared for cache in caches)
        for cache in caches:
            (keys, values), own = cache.entries(index, 64, 16), shared[cache.number]
            assert keys.data_ptr() == own[0].data_ptr()
            assert values.data_ptr() == own[1].data_ptr()
    assert caches[0].nbytes == new_cache().nbytes
