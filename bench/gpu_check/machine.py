"""The stage "env": versions, the GPU's properties, bandwidths, and times of small operations."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata

import torch
from torch.nn import functional as F

from bench.gpu_check.device import DEVICE, HALF, TINY, gpu_ms, sync, wall_ms
from bench.gpu_check.results import guarded, write_row

_STAGE = "env"
_LIBRARIES = [
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pydantic",
    "msgspec",
    "pyzmq",
    "fastapi",
    "starlette",
    "uvicorn",
    "sse-starlette",
    "jsonschema-rs",
    "gguf",
    "httpx",
    "typer",
    "rich",
    "jinja2",
    "pillow",
    "prometheus-client",
    "pydantic-settings",
]
_PROPERTIES = (
    "name",
    "major",
    "minor",
    "multi_processor_count",
    "total_memory",
    "L2_cache_size",
    "shared_memory_per_block_optin",
    "regs_per_multiprocessor",
    "is_integrated",
)


def check_machine() -> None:
    """Write what the machine is and how fast its memory and its operations are."""
    versions = {name: _version(name) for name in _LIBRARIES}
    write_row(
        _STAGE,
        python=sys.version.split()[0],
        cores=os.cpu_count(),
        torch_cuda=torch.version.cuda,
        missing=[name for name, version in versions.items() if version is None],
        versions=versions,
        gcc=shutil.which("gcc"),
        ptxas=shutil.which("ptxas"),
    )
    if DEVICE.type == "cuda":
        guarded(_STAGE, "GPU", _check_gpu)
    # The cost of a small operation, launched by the host and as a node of a graph. A step has about
    # 2,000 of them.
    x = torch.randn(256, 2816, device=DEVICE).to(HALF)
    row = torch.randn(2816, device=DEVICE).to(HALF)
    small: dict[str, Callable[[], object]] = {
        "add": lambda: x + x,
        "multiply by a row": lambda: x * row,
        "rms_norm": lambda: F.rms_norm(x, (2816,), row, 1e-6),
        "cat": lambda: torch.cat([x, x], -1),
        "topk": lambda: x[:, :128].float().topk(8),
        "argsort": lambda: x[:8, :256].flatten().argsort(stable=True),
    }
    for name, operation in small.items():
        guarded(_STAGE, name, partial(_time_small, name, operation))


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _check_gpu() -> None:
    started = time.perf_counter()
    torch.zeros(1, device=DEVICE)
    sync()
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    write_row(
        _STAGE,
        context_s=round(time.perf_counter() - started, 2),
        free_gb=free / 1e9,
        total_gb=total / 1e9,
        **{name: getattr(properties, name, None) for name in _PROPERTIES},
    )
    big = torch.empty(4 * 2**30, dtype=torch.uint8, device=DEVICE).random_(0, 255)
    copy = torch.empty_like(big)
    ms = gpu_ms([lambda: copy.copy_(big)])
    write_row(_STAGE, case="device copy, read and write", gb_s=2 * big.nbytes / ms / 1e6)
    words = big.view(torch.int32)
    ms = gpu_ms([lambda: words.amax()])
    write_row(_STAGE, case="device read (amax)", gb_s=big.nbytes / ms / 1e6)
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=HALF) for _ in range(2))
    ms = gpu_ms([lambda: a @ b])
    write_row(_STAGE, case="bf16 product 8192^3", tflops=2 * 8192**3 / ms / 1e9)
    pageable = torch.empty(2**29, dtype=torch.uint8)
    target = copy[: 2**29]
    for name, host in (("pageable", pageable), ("pinned", pageable.pin_memory())):
        ms = wall_ms(partial(target.copy_, host), rounds=3, warm_ups=1)
        write_row(_STAGE, case=f"host to device, {name}", gb_s=host.nbytes / ms / 1e6)


def _time_small(name: str, operation: Callable[[], object]) -> None:
    count = 5 if TINY else 200
    eager_ms = wall_ms(lambda: [operation() for _ in range(count)], rounds=3) / count
    write_row(
        _STAGE,
        case=f"small operation: {name}",
        eager_us=eager_ms * 1e3,
        in_graph_us=gpu_ms([operation] * count, rounds=5) * 1e3,
    )
