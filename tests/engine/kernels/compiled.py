"""Compiles the kernels with Triton's compiler, for GPUs that this machine need not have.

Triton's interpreter accepts more of Python than the compiler does, and has no limit of shared
memory. Run as a program, this module prints a line of JSON for each launch and compute capability.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.kernels import (
    block_noise,
    grouped_linear,
    prefix_attention,
    vocab_draw,
    vocab_statistics,
)
from engine.kernels.dequantise import Scheme
from engine.sizing.weights import INT4_GROUP, SCALE_TYPE

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.bool: "i1",
}
CAPABILITIES = (89, 90, 120, 121)
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


class Launches:
    """Replaces a module's kernel, and records the arguments of its launches."""

    def __init__(self, module: Any, name: str = "_kernel") -> None:
        self.kernel = getattr(module, name)
        setattr(module, name, self)
        self.calls: list[tuple[tuple[Any, ...], dict[str, int]]] = []

    def __getitem__(self, _grid: object) -> Callable[..., None]:
        return lambda *args, **options: self.calls.append((args, options))

    def compiled(self, capability: int) -> Iterator[Any]:
        """Yields each launch's compiled kernel, for tensors with addresses that 16 divides."""
        for args, options in self.calls:
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
            yield triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


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


def penalty(vocab: int) -> dict[str, Any]:
    """Returns the largest bias as the arguments of the kernels that know one."""
    return {"values": torch.empty(vocab), "factors": torch.empty(vocab)}


def launch_vocab_statistics() -> list[str]:
    """Launch the released vocabulary's statistics for a canvas, and return the launches' names."""
    names = []
    with torch.device("meta"):
        logits = torch.empty(256, 262144, dtype=torch.bfloat16)
        row = torch.empty(256)
        for name, bias in (("no bias", {}), ("a penalty", penalty(262144))):
            out = vocab_statistics.vocab_statistics(
                logits, row, row, softcap=30.0, group=256, **bias
            )
            vocab_statistics.vocab_peaks(logits, out, slice(0, 256), softcap=30.0, **bias)
            names += [f"vocabulary statistics, {name}", f"vocabulary peaks, {name}"]
    return names


def launch_group_draw() -> list[str]:
    """Launch the draw of a canvas from the released vocabulary, and return names."""
    names = []
    with torch.device("meta"):
        hidden, mass = torch.empty(256, 2816, dtype=torch.bfloat16), torch.empty(256, 1024)
        row, wanted = torch.empty(256), torch.empty(256, dtype=torch.bool)
        tokens, scales = torch.empty(256, dtype=torch.int64), torch.empty(262144, 1).half()
        for dtype in (torch.bfloat16, torch.int8, torch.float8_e4m3fn):
            vocab_draw.group_draw(
                mass,
                hidden,
                torch.empty(262144, 2816, dtype=dtype),
                row,
                row,
                wanted,
                tokens,
                slice(0, 256),
                softcap=30.0,
                scales=None if dtype == torch.bfloat16 else scales,
                **penalty(262144),
            )
            names.append(f"draw, {dtype}")
    return names


def launch_truncated_draw() -> list[str]:
    """Launch a truncated draw of a canvas from the released vocabulary, and return names."""
    names = []
    with torch.device("meta"):
        logits = torch.empty(256, 262144, dtype=torch.bfloat16)
        row, wanted = torch.empty(256), torch.empty(256, dtype=torch.bool)
        tokens, probs = torch.empty(256, dtype=torch.int64), torch.empty(256, 262144)
        for top_k, top_p in ((0, 1.0), (0, 0.9), (50, 0.9)):
            vocab_draw.truncated_draw(
                logits,
                probs,
                row,
                row,
                wanted,
                tokens,
                0,
                slice(0, 256),
                softcap=30.0,
                top_k=top_k,
                top_p=top_p,
                min_p=0.1,
                **penalty(262144),
            )
            names.append(f"draw from the likeliest tokens, top-k {top_k}, top-p {top_p}")
    return names


def launch_block_noise() -> list[str]:
    """Launch a block's random numbers, and return the launch's name."""
    with torch.device("meta"):
        block_noise.block_noise_tensors(
            (1, 2**32 - 1),
            3,
            4,
            steps=48,
            canvas_length=256,
            vocab_size=262144,
            device=torch.device("meta"),
        )
    return ["a block's noise"]


LAUNCHED: tuple[tuple[Any, str, Callable[[], list[str]]], ...] = (
    (grouped_linear, "_kernel", launch_grouped_linear),
    (prefix_attention, "_kernel", launch_prefix_attention),
    (vocab_statistics, "_kernel", launch_vocab_statistics),
    (vocab_draw, "_group_kernel", launch_group_draw),
    (vocab_draw, "_truncated_kernel", launch_truncated_draw),
    (block_noise, "_kernel", launch_block_noise),
)


def main() -> None:
    for module, name, launch in LAUNCHED:
        launches = Launches(module, name)
        names = launch()
        for capability in CAPABILITIES:
            for name, kernel in zip(names, launches.compiled(capability), strict=True):
                shared = kernel.metadata.shared
                line = {"kernel": name, "capability": capability, "shared_bytes": shared}
                print(json.dumps(line))


if __name__ == "__main__":
    main()
