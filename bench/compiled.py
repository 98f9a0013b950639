"""Compiles the kernels with Triton's compiler, for GPUs that this machine need not have.

Triton's interpreter accepts more of Python than the compiler does, and has no limit of shared
memory. So this needs a process without TRITON_INTERPRET.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.kernels import grouped_linear, prefix_attention, vocab_statistics
from engine.kernels.dequantise import Scheme
from engine.kernels.target import Target
from engine.sizing.weights import INT4_GROUP, SCALE_TYPE

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}
# NVIDIA's data sheets, and the limits of a thread block in the CUDA C++ Programming Guide.
TARGETS = (
    Target((8, 9), 128, 99 * 1024),  # RTX 4090
    Target((9, 0), 132, 227 * 1024),  # H100, H200
    Target((10, 3), 148, 227 * 1024),  # B300
    Target((12, 0), 170, 99 * 1024),  # RTX 5090
    Target((12, 1), 48, 99 * 1024),  # DGX Spark
)
MADE_SCALES: torch.dtype = getattr(torch, SCALE_TYPE)
# Formats of weights with 2,816 inputs: name, scheme, scales a row and their dtype, and if there are
# zeros. The first ones behind "dense" are made while loading, the others are published.
LAYOUTS: tuple[tuple[str, Scheme, int | None, torch.dtype, bool], ...] = (
    ("dense", "dense", None, torch.bfloat16, False),
    ("int8", "int8", 1, MADE_SCALES, False),
    ("fp8", "fp8", 1, MADE_SCALES, False),
    ("int4", "int4", 2816 // INT4_GROUP, MADE_SCALES, False),
    ("llm-compressor's INT8", "int8", 1, torch.float32, False),
    ("RedHatAI's FP8-dynamic", "fp8", 1, torch.float32, False),
    ("NVFP4", "nvfp4", 176, torch.float8_e4m3fn, False),
    ("GGUF's Q8_0", "int8", 88, torch.float16, False),
    ("GGUF's Q6_K", "int8", 176, torch.float32, False),
    ("GGUF's Q4_K", "int4", 88, torch.float16, True),
)


@dataclass(frozen=True)
class Compiled:
    """A launch, and its kernel as it was compiled for one GPU."""

    name: str
    kernel: str  # its name in its module
    target: Target
    constants: dict[str, Any]  # the kernel's, by name
    warps: int
    shared_bytes: int
    cubin: bytes


class Launches:
    """Replaces a module's kernel, and records the arguments of its launches.

    They are made as if on this GPU, or on none.
    """

    def __init__(self, module: Any, target: Target | None = None, kernel: str = "_kernel") -> None:
        self.module, self.target, self.name = module, target, kernel
        self.kernel = getattr(module, kernel)
        setattr(module, kernel, self)
        self.target_of = getattr(module, "target_of", None)
        module.target_of = lambda _device: target
        self.calls: list[tuple[tuple[Any, ...], dict[str, int]]] = []

    def __getitem__(self, _grid: object) -> Callable[..., None]:
        return lambda *args, **options: self.calls.append((args, options))

    def restore(self) -> None:
        """Undo the replacement."""
        setattr(self.module, self.name, self.kernel)
        self.module.target_of = self.target_of

    def compile(self, name: str, args: tuple[Any, ...], options: dict[str, int]) -> Compiled:
        """Returns the kernel of a launch, for tensors with addresses that 16 divides."""
        assert self.target is not None
        major, minor = self.target.capability
        gpu = GPUTarget("cuda", 10 * major + minor, 32)
        signature, constants, attributes = {}, {}, {}
        for index, (parameter, value) in enumerate(zip(self.kernel.params, args, strict=True)):
            if parameter.is_constexpr or value is None:
                signature[parameter.name], constants[index,] = "constexpr", value
                continue
            tensor = isinstance(value, torch.Tensor)
            number = "fp32" if isinstance(value, float) else "i32"
            signature[parameter.name] = f"*{TYPES[value.dtype]}" if tensor else number
            known = number == "i32" and not parameter.do_not_specialize
            if tensor or (known and value % 16 == 0):
                attributes[index,] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, attributes)
        kernel = triton.compile(source, target=gpu, options=options)
        return Compiled(
            name,
            self.name,
            self.target,
            {self.kernel.params[index].name: value for (index,), value in constants.items()},
            options.get("num_warps", 4),
            kernel.metadata.shared,
            kernel.asm["cubin"],
        )


def compiled(target: Target, *, wanted: str = "") -> Iterator[Compiled]:
    """Yields every launch of the released model whose name has this text, compiled for a GPU."""
    for module, kernels, launch in LAUNCHED:
        recorders = [Launches(module, target, kernel) for kernel in kernels]
        launches = []
        try:
            for name in launch():
                for each in recorders:
                    launches += [(each, name, *call) for call in each.calls]
                    each.calls.clear()
        finally:
            for each in reversed(recorders):
                each.restore()
        for each, name, args, options in launches:
            if wanted in name:
                yield each.compile(name, args, options)


def launch_grouped_linear() -> Iterator[str]:
    """Launch the released model's products in the layouts of the formats that are read.

    They are the experts' gate and up for one canvas and for four, and a sliding layer's queries,
    keys and values for one canvas. Yields each launch's name after it.
    """
    for name, scheme, columns, scale_type, zeros in LAYOUTS:
        for rows, groups in ((2048, 128), (8192, 128), (256, None)):
            if rows == 8192 and scheme not in ("dense", "nvfp4"):
                continue  # these take the most shared memory
            outputs, inputs = (8192 if groups is None else 1408), 2816
            front = () if groups is None else (groups,)
            codes = (*front, outputs, inputs // (2 if scheme in ("int4", "nvfp4") else 1))
            with torch.device("meta"):
                scales = None
                if columns is not None:
                    scales = torch.empty(*front, outputs, columns).to(scale_type)
                grouped_linear.grouped_linear(
                    torch.empty(rows, inputs, dtype=torch.bfloat16),
                    torch.empty(codes).to(torch.bfloat16 if scales is None else torch.uint8),
                    None if groups is None else torch.empty(groups, dtype=torch.int32),
                    scheme=scheme,
                    scales=scales,
                    zeros=scales if zeros else None,
                    global_scale=torch.empty(front) if scheme == "nvfp4" else None,
                )
            yield f"{name}, {rows} rows of {groups or 'no'} groups"


def launch_prefix_attention() -> Iterator[str]:
    """Launch the released model's attention for a canvas and for a prompt.

    Yields each launch's name after it.
    """
    for kv_heads, size, window in ((8, 256, 1024), (2, 512, None)):
        for causal in (False, True):
            with torch.device("meta"):
                queries = torch.empty(16, 256, size, dtype=torch.bfloat16)
                keys = torch.empty(kv_heads, 8448, size, dtype=torch.bfloat16)
                span = torch.empty(2, dtype=torch.int64)
            options: dict[str, Any] = {"causal": True, "window": window} if causal else {}
            prefix_attention.prefix_attention(queries, keys, keys, span, **options)
            yield f"attention, head size {size}, {'a prompt' if causal else 'a canvas'}"


def launch_vocab_statistics() -> Iterator[str]:
    """Launch the released vocabulary's statistics for a canvas, and yield the launch's name."""
    with torch.device("meta"):
        logits = torch.empty(256, 262144, dtype=torch.bfloat16)
        rows = torch.empty(256)
        vocab_statistics.vocab_statistics(logits, rows, rows, softcap=30.0, group=256)
    yield "vocabulary statistics"


LAUNCHED: tuple[tuple[Any, tuple[str, ...], Callable[[], Iterator[str]]], ...] = (
    (grouped_linear, ("_kernel",), launch_grouped_linear),
    (prefix_attention, ("_kernel", "_combine"), launch_prefix_attention),
    (vocab_statistics, ("_kernel",), launch_vocab_statistics),
)
