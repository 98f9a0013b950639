import pytest
import torch

from bench.compare import peak_bytes
from engine.config import EngineConfig
from engine.device import choose_threads, gpu_memory, taken_memory


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


def test_the_taken_memory_of_a_gpu_is_what_its_driver_reports(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (30, 100))
    assert taken_memory(torch.device("cuda")) == 70
    assert gpu_memory(torch.device("cuda")) == (70, 100)


def test_a_cpu_has_no_memory_of_a_gpu():
    assert gpu_memory(torch.device("cpu")) == (0, 0)


def test_the_memory_of_work_on_a_gpu_is_what_the_driver_reports_more_than_before(monkeypatch):
    free = iter([60, 45])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (next(free), 100))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert peak_bytes(lambda: None, torch.device("cuda")) == 15
