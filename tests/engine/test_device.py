import pytest
import torch

from engine.config import EngineConfig
from engine.device import choose_threads


@pytest.mark.parametrize(
    ("threads", "device", "hidden_size", "expected"),
    [(0, "cpu", 128, 1), (0, "cpu", 2816, 5), (0, "cuda", 128, 5), (3, "cpu", 128, 3)],
)
def test_a_narrow_model_on_a_cpu_gets_one_thread_unless_a_number_is_set(
    monkeypatch, threads, device, hidden_size, expected
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    config = EngineConfig(threads=threads)
    assert choose_threads(config, torch.device(device), hidden_size) == expected
