"""The least time of a step, computed for the released model."""

import pytest

from bench.roofline import FORMATS, compute_bound_from, devices, released, rows
from engine.config import Formats
from engine.sizing.roofline import step_cost

EMBEDDING_BYTES = 2 * released().vocab_size * released().hidden_size


def cost(context=8192, **formats):
    return step_cost(released(), Formats(**formats), context=context)


def test_a_step_in_bf16_reads_the_released_weights_once_and_the_embedding_twice():
    assert cost().fixed_bytes - EMBEDDING_BYTES == pytest.approx(50.5e9, rel=0.01)


def test_quantised_weights_are_read_in_fewer_bytes():
    assert cost(experts="int8", linears="int8").fixed_bytes < 0.55 * cost().fixed_bytes
    assert cost(experts="int4").fixed_bytes < cost(experts="int8").fixed_bytes


def test_only_kept_keys_and_values_are_read():
    near, far = (cost(context).canvas_bytes for context in (2000, 3000))
    assert far - near == 1000 * 20 * 1024  # full layers only, because the windows are already full
    assert cost(1).canvas_bytes - cost(0).canvas_bytes == 220 * 1024


def test_every_device_has_a_row_for_every_format():
    assert len(list(rows())) == len(devices()) * len(FORMATS)


def test_with_enough_canvases_a_step_is_bound_by_operations_and_otherwise_by_bytes():
    speed = {"bandwidth": 1.792e12, "peak": 503.8e12}
    step = cost(experts="int8", linears="int8")
    first = compute_bound_from(step, **speed)
    for canvases in (first - 1, first):
        by_bytes = step.memory_seconds(bandwidth=speed["bandwidth"], canvases=canvases)
        assert (step.seconds(**speed, canvases=canvases) > by_bytes) == (canvases == first)
