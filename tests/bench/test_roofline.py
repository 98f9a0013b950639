import pytest

from bench.roofline import DEVICES, FORMS, RELEASED, rows, step

EMBEDDING_BYTES = 2 * RELEASED.vocab_size * RELEASED.hidden_size


def test_a_step_in_bf16_reads_the_released_weights_once_and_the_embedding_twice():
    cost = step(RELEASED, FORMS["BF16"])
    assert cost.fixed_bytes - EMBEDDING_BYTES == pytest.approx(50.5e9, rel=0.01)


def test_keys_and_values_cost_what_the_layers_keep_of_them():
    near, far = (step(RELEASED, FORMS["BF16"], context).canvas_bytes for context in (2000, 3000))
    assert far - near == 1000 * 20 * 1024  # full layers alone: the windows are full
    first = step(RELEASED, FORMS["BF16"], 1).canvas_bytes
    none = step(RELEASED, FORMS["BF16"], 0).canvas_bytes
    assert first - none == 220 * 1024


def test_every_device_has_a_row_for_every_form():
    assert len(list(rows())) == len(DEVICES) * len(FORMS)
