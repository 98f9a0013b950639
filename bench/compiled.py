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

from bench.released_launches import LAUNCHED
from engine.kernels.target import Target

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.bool: "i1",
}
# NVIDIA's data sheets, and the limits of a thread block in the CUDA C++ Programming Guide.
TARGETS = (
    Target((8, 9), 128, 99 * 1024),  # RTX 4090
    Target((9, 0), 132, 227 * 1024),  # H100, H200
    Target((10, 3), 148, 227 * 1024),  # B300
    Target((12, 0), 170, 99 * 1024),  # RTX 5090
    Target((12, 1), 48, 99 * 1024),  # DGX Spark
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
        if self.target_of is not None:
            module.target_of = lambda _device: target
        self.calls: list[tuple[tuple[Any, ...], dict[str, int]]] = []

    def __getitem__(self, _grid: object) -> Callable[..., None]:
        return lambda *args, **options: self.calls.append((args, options))

    def restore(self) -> None:
        """Undo the replacement."""
        setattr(self.module, self.name, self.kernel)
        if self.target_of is not None:
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
