"""Counts the instructions of the kernels' inner loops in what the compiler makes for each GPU.

The counts need no GPU. For a product with quantised weights, the instructions of the loop over the
inputs are divided by the weights that each thread dequantises in it. A GPU that reads weights
faster than it issues these instructions waits for them and not for its memory.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import triton

from bench.compare import Row, Show, silent
from bench.compiled import TARGETS, Compiled, compiled
from engine.kernels.target import Target

COLUMNS = [
    "kernel",
    "instructions",
    "a_weight",
    "matrix_products",
    "local_memory",
    "shared_kib",
    "tile",
]
_DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
_LABEL = re.compile(r"^(\.L_\w+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*);")
_TARGET = re.compile(r"\.L_\w+")
_PRODUCTS = ("HMMA", "HGMMA", "UTCHMMA")
_THREADS = 32  # of a warp


def rows(
    targets: tuple[Target, ...] = TARGETS, wanted: str = "", show: Show = silent
) -> Iterator[Row]:
    """Yield one row for each launch of the released model whose name has this text, by GPU."""
    for target in targets:
        for kernel in compiled(target, wanted=wanted):
            row = count(kernel)
            show(row["case"])
            yield row


def find_targets(capabilities: Sequence[str] | None) -> tuple[Target, ...]:
    """Returns the GPUs of these compute capabilities, or all without any.

    Raises ValueError if a capability is not known.
    """
    known = {".".join(map(str, target.capability)): target for target in TARGETS}
    for each in capabilities or ():
        if each not in known:
            raise ValueError(f"{each!r} is not known; known: {', '.join(known)}")
    return tuple(known[each] for each in capabilities or known)


def count(kernel: Compiled) -> Row:
    """Returns the counts of one kernel. `a_weight` is None without quantised weights."""
    listing = instructions(kernel.cubin)
    loop = inner_loop(listing)
    major, minor = kernel.target.capability
    constants = kernel.constants
    tile = [str(constants[name]) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K") if name in constants]
    weights = None
    if "BLOCK_N" in constants and constants.get("SCHEME", "dense") != "dense":
        weights = constants["BLOCK_N"] * constants["BLOCK_K"] / (kernel.warps * _THREADS)
    return {
        "case": f"{major}.{minor}, {kernel.name}",
        "kernel": kernel.kernel,
        "capability": [major, minor],
        "instructions": len(loop),
        "a_weight": None if weights is None else len(loop) / weights,
        "matrix_products": sum(each.startswith(_PRODUCTS) for each in loop),
        "local_memory": sum(name.startswith(("LDL", "STL")) for name in loop),
        "shared_kib": kernel.shared_bytes / 1024,
        "tile": " x ".join(tile),
    }


def instructions(cubin: bytes) -> list[tuple[str, int | None]]:
    """Returns a kernel's instructions, and the index of the one that each may jump to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_DISASSEMBLER), "-c", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    labels: dict[str, int] = {}
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(found)
        elif instruction := _INSTRUCTION.match(line):
            found.append((instruction[1], instruction[2]))
    listing = []
    for name, operands in found:
        target = _TARGET.search(operands) if name.startswith("BRA") else None
        listing.append((name, labels[target[0]] if target else None))
    return listing


def inner_loop(listing: list[tuple[str, int | None]]) -> list[str]:
    """Returns the instructions of the longest loop with matrix products, or of the longest loop.

    It is empty if there is no loop. Instructions that only fill a place are left out.
    """
    loops = [
        [name for name, _ in listing[target : index + 1] if name != "NOP"]
        for index, (_, target) in enumerate(listing)
        if target is not None and target <= index
    ]
    products = [loop for loop in loops if any(name.startswith(_PRODUCTS) for name in loop)]
    return max(products or loops, key=len, default=[])
