"""The stage "machine": versions, properties of the GPU, its ceilings, and small operations."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata

import torch
from torch.nn import functional as F

from bench.gpu.device import DEVICE, HALF, TINY, gpu_ms, sync, wall_ms
from bench.gpu.report import COPY_CASE
from bench.gpu.results import guarded, write_row
from engine.device import free_memory

_STAGE = "machine"
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
    *([] if sys.version_info >= (3, 14) else ["backports.zstd"]),
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


_DRIVER = ("driver_version", "clocks.max.sm", "clocks.max.memory", "power.limit")
_BIG_BYTES = 2**20 if TINY else 2**32  # more than any cache holds
_SIDE = 64 if TINY else 8192


def check_machine() -> None:
    """Write what the machine is and how fast its memory and its operations are."""
    versions = {name: _version(name) for name in _LIBRARIES}
    write_row(
        _STAGE,
        case="versions",
        python=sys.version.split()[0],
        cores=os.cpu_count(),
        torch_cuda=torch.version.cuda,
        missing=[name for name, version in versions.items() if version is None],
        versions=versions,
        gcc=shutil.which("gcc"),
        ptxas=shutil.which("ptxas"),
    )
    if DEVICE.type == "cuda":
        guarded(_STAGE, "GPU", _describe_gpu)
        guarded(_STAGE, "driver", _describe_driver)
    guarded(_STAGE, "memory's bandwidths", _time_copies)
    for dtype in (HALF, torch.float8_e4m3fn):
        guarded(_STAGE, f"product in {dtype}", partial(_time_product, dtype))
    # The cost of a small operation, launched by the host and as a node of a graph. A step launches
    # some 400 kernels, of which nearly half are products.
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


def _describe_gpu() -> None:
    started = time.perf_counter()
    torch.zeros(1, device=DEVICE)
    sync()
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    write_row(
        _STAGE,
        case="GPU",
        context_s=round(time.perf_counter() - started, 2),
        free_gb=free / 1e9,
        total_gb=total / 1e9,
        **{name: getattr(properties, name, None) for name in _PROPERTIES},
    )


def _describe_driver() -> None:
    if shutil.which("nvidia-smi") is None:
        write_row(_STAGE, case="driver", SKIPPED="there is no nvidia-smi")
        return
    command = ["nvidia-smi", f"--query-gpu={','.join(_DRIVER)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    values = (value.strip() for value in done.stdout.splitlines()[0].split(","))
    write_row(_STAGE, case="driver", **dict(zip(_DRIVER, values, strict=True)))


def _time_copies() -> None:
    count = min(_BIG_BYTES, free_memory(DEVICE) // 4)
    big = torch.empty(count // 32 * 32, dtype=torch.uint8, device=DEVICE).random_(0, 255)
    copy = torch.empty_like(big)
    ms = gpu_ms([lambda: copy.copy_(big)])
    write_row(_STAGE, case=COPY_CASE, gb_s=2 * big.nbytes / ms / 1e6)
    words = big.view(torch.int32)
    ms = gpu_ms([lambda: words.amax()])
    write_row(_STAGE, case="device read (amax)", gb_s=big.nbytes / ms / 1e6)
    pageable = torch.empty(count // 8, dtype=torch.uint8)
    hosts = {"pageable": pageable}
    if DEVICE.type == "cuda":
        hosts["pinned"] = pageable.pin_memory()
    for name, host in hosts.items():
        ms = wall_ms(partial(copy[: host.numel()].copy_, host), rounds=3, warm_ups=1)
        write_row(_STAGE, case=f"host to device, {name}", gb_s=host.nbytes / ms / 1e6)


def _time_product(dtype: torch.dtype) -> None:
    """Time a product of two square matrices of this type, whose result has 16 bits."""
    case = f"product of {_SIDE} x {_SIDE} in {str(dtype).removeprefix('torch.')}"
    a, b = (torch.randn(_SIDE, _SIDE, device=DEVICE).to(dtype) for _ in range(2))
    if dtype != torch.float8_e4m3fn:
        ms = gpu_ms([lambda: a @ b])
    elif DEVICE.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        write_row(_STAGE, case=case, SKIPPED="this GPU has no products in FP8")
        return
    else:
        one = torch.ones((), device=DEVICE)
        product = partial(torch._scaled_mm, a, b.t(), one, one, out_dtype=torch.bfloat16)
        ms = gpu_ms([product])
    write_row(_STAGE, case=case, tflops=2 * _SIDE**3 / ms / 1e9)


def _time_small(name: str, operation: Callable[[], object]) -> None:
    count = 5 if TINY else 200
    eager_ms = wall_ms(lambda: [operation() for _ in range(count)], rounds=3) / count
    write_row(
        _STAGE,
        case=f"small operation: {name}",
        eager_us=eager_ms * 1e3,
        in_graph_us=gpu_ms([operation] * count, rounds=5) * 1e3,
    )
