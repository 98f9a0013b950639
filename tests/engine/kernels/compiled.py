"""What Triton's compiler makes of the kernels for GPUs that need not be there: run as a program.

The interpreter takes more of Python than the compiler does, and knows no limit of shared memory.
Prints a line of JSON for each launch and compute capability.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.kernels import grouped_linear, prefix_attention, vocab_statistics

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}
CAPABILITIES = (89, 90, 120)


class Launches:
    """Stands in a module for its kernel and keeps what the kernel is launched with."""

    def __init__(self, module: Any) -> None:
        self.kernel, module._kernel = module._kernel, self
        self.calls: list[tuple[tuple[Any, ...], dict[str, int]]] = []

    def __getitem__(self, _grid: object) -> Callable[..., None]:
        return lambda *args, **options: self.calls.append((args, options))

    def compiled(self, capability: int) -> Iterator[Any]:
        """Each launch's kernel, for tensors whose addresses are multiples of 16."""
        for args, options in self.calls:
            signature, constants, attributes = {}, {}, {}
            for place, (parameter, value) in enumerate(zip(self.kernel.params, args, strict=True)):
                if parameter.is_constexpr or value is None:
                    signature[parameter.name], constants[place,] = "constexpr", value
                    continue
                tensor = isinstance(value, torch.Tensor)
                number = "fp32" if isinstance(value, float) else "i32"
                signature[parameter.name] = f"*{TYPES[value.dtype]}" if tensor else number
                if tensor or (number == "i32" and value % 16 == 0):
                    attributes[place,] = [["tt.divisibility", 16]]
            source = ASTSource(self.kernel, signature, constants, attributes)
            yield triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def launch_grouped_linear() -> list[str]:
    """The released model's gate and up, as a canvas has them and as four do."""
    names = []
    for scheme in ("dense", "int8", "fp8", "int4", "nvfp4"):
        for rows in (2048, 8192) if scheme in ("dense", "nvfp4") else (2048,):
            pack, columns = (2 if "4" in scheme else 1), 176 if scheme == "nvfp4" else 88
            quantised = scheme != "dense"
            scale_type = torch.float8_e4m3fn if scheme == "nvfp4" else torch.float32
            with torch.device("meta"):
                scales = torch.empty(128, 1408, columns).to(scale_type) if quantised else None
                grouped_linear.grouped_linear(
                    torch.empty(rows, 2816, dtype=torch.bfloat16),
                    torch.empty(128, 1408, 2816 // pack).to(
                        torch.uint8 if quantised else torch.bfloat16
                    ),
                    torch.empty(128, dtype=torch.int32),
                    scheme=scheme,
                    scales=scales,
                    zeros=scales if scheme == "int4" else None,
                    global_scale=torch.empty(128) if scheme == "nvfp4" else None,
                )
            names.append(f"{scheme}, {rows} rows")
    return names


def launch_prefix_attention() -> list[str]:
    """The released model's layers: a canvas, and a prompt's causal part."""
    names = []
    for kv_heads, size, window in ((8, 256, 1024), (2, 512, None)):
        for causal in (False, True):
            with torch.device("meta"):
                queries = torch.empty(16, 256, size, dtype=torch.bfloat16)
                keys = torch.empty(kv_heads, 8448, size, dtype=torch.bfloat16)
                span = torch.empty(2, dtype=torch.int64)
            options = {"causal": True, "window": window} if causal else {}
            prefix_attention.prefix_attention(queries, keys, keys, span, **options)
            names.append(f"head size {size}, {options}")
    return names


def launch_vocab_statistics() -> list[str]:
    """The released vocabulary for a canvas."""
    with torch.device("meta"):
        logits = torch.empty(256, 262144, dtype=torch.bfloat16)
        rows = torch.empty(256)
        vocab_statistics.vocab_statistics(logits, rows, rows, softcap=30.0, group=256)
    return ["vocabulary statistics"]


def main() -> None:
    for module, launch in (
        (grouped_linear, launch_grouped_linear),
        (prefix_attention, launch_prefix_attention),
        (vocab_statistics, launch_vocab_statistics),
    ):
        launches = Launches(module)
        names = launch()
        for capability in CAPABILITIES:
            for name, kernel in zip(names, launches.compiled(capability), strict=True):
                shared = kernel.metadata.shared
                line = {"kernel": name, "capability": capability, "shared_bytes": shared}
                print(json.dumps(line))


if __name__ == "__main__":
    main()
