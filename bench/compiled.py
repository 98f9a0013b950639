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
from engine.kernels.target import Capability
from engine.sizing.weights import INT4_GROUP, SCALE_TYPE

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}
CAPABILITIES: tuple[Capability, ...] = ((8, 9), (9, 0), (10, 3), (12, 0), (12, 1))
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
    capability: Capability
    constants: dict[str, Any]  # the kernel's, by name
    warps: int
    shared_bytes: int
    cubin: bytes


class Launches:
    """Replaces a module's kernel, and records the arguments of its launches.

    They are made as if on a GPU of this compute capability, or on none.
    """

    def __init__(self, module: Any, capability: Capability | None = None) -> None:
        self.module, self.capability = module, capability
        self.kernel, module._kernel = module._kernel, self
        self.capability_of = getattr(module, "capability_of", None)
        module.capability_of = lambda _device: capability
        self.calls: list[tuple[tuple[Any, ...], dict[str, int]]] = []

    def __getitem__(self, _grid: object) -> Callable[..., None]:
        return lambda *args, **options: self.calls.append((args, options))

    def restore(self) -> None:
        """Undo the replacement."""
        self.module._kernel, self.module.capability_of = self.kernel, self.capability_of

    def compiled(self, names: list[str]) -> Iterator[Compiled]:
        """Yields each launch's kernel, for tensors with addresses that 16 divides."""
        assert self.capability is not None
        target = GPUTarget("cuda", 10 * self.capability[0] + self.capability[1], 32)
        for name, (args, options) in zip(names, self.calls, strict=True):
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
            kernel = triton.compile(source, target=target, options=options)
            yield Compiled(
                name,
                self.capability,
                {self.kernel.params[index].name: value for (index,), value in constants.items()},
                options["num_warps"],
                kernel.metadata.shared,
                kernel.asm["cubin"],
            )


def compiled(capability: Capability, *, wanted: str = "") -> Iterator[Compiled]:
    """Yields every launch of the released model whose name has this text, compiled for a GPU."""
    for module, launch in LAUNCHED:
        launches = Launches(module, capability)
        try:
            names = launch()
        finally:
            launches.restore()
        pairs = zip(names, launches.calls, strict=True)
        kept = [(name, call) for name, call in pairs if wanted in name]
        launches.calls = [call for _, call in kept]
        yield from launches.compiled([name for name, _ in kept])


def launch_grouped_linear() -> list[str]:
    """Launch the released model's products in the layouts of the formats that are read.

    They are the experts' gate and up for one canvas and for four, and a sliding layer's queries,
    keys and values for one canvas. Returns the launches' names.
    """
    names = []
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
            names.append(f"{name}, {rows} rows of {groups or 'no'} groups")
    return names


def launch_prefix_attention() -> list[str]:
    """Launch the released model's attention for a canvas and for a prompt, and return names."""
    names = []
    for kv_heads, size, window in ((8, 256, 1024), (2, 512, None)):
        for causal in (False, True):
            with torch.device("meta"):
                queries = torch.empty(16, 256, size, dtype=torch.bfloat16)
                keys = torch.empty(kv_heads, 8448, size, dtype=torch.bfloat16)
                span = torch.empty(2, dtype=torch.int64)
            options: dict[str, Any] = {"causal": True, "window": window} if causal else {}
            prefix_attention.prefix_attention(queries, keys, keys, span, **options)
            names.append(f"head size {size}, {options}")
    return names


def launch_vocab_statistics() -> list[str]:
    """Launch the released vocabulary's statistics for a canvas, and return the launch's name."""
    with torch.device("meta"):
        logits = torch.empty(256, 262144, dtype=torch.bfloat16)
        rows = torch.empty(256)
        vocab_statistics.vocab_statistics(logits, rows, rows, softcap=30.0, group=256)
    return ["vocabulary statistics"]


LAUNCHED: tuple[tuple[Any, Callable[[], list[str]]], ...] = (
    (grouped_linear, launch_grouped_linear),
    (prefix_attention, launch_prefix_attention),
    (vocab_statistics, launch_vocab_statistics),
)
