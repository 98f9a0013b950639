"""The stages of a run, the order in which they run, and their time limits. It does not know torch.

The most valuable stage comes first, and what a limit or the end of the run cuts off is only what
comes after.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.config import Formats

MINUTES = 9.0  # for which the limits are made; they grow and shrink with the minutes of a run
NAMES = ("machine", "kernels", "model", "released", "server")
# The formats of the released size's weights, by their names on the command line.
FORMATS = {
    "bf16": Formats(),
    "int8": Formats("int8", "int8"),
    "int4": Formats("int4", "int8"),
    "int8x": Formats("int8"),
    "fp8": Formats("fp8", "fp8"),
    "int4x": Formats("int4"),
    "small": Formats("int4", "int8", "int8"),
}
DEFAULT_FORMATS = ("bf16", "int8", "int4", "int8x", "fp8")


@dataclass(frozen=True)
class Stage:
    """One process of a run."""

    name: str  # its words are the arguments of `python -m bench.gpu`
    limit_s: float
    kept_s: float = 0.0  # the time that the stages before it leave for it


def planned(names: Sequence[str], formats: Sequence[str]) -> Iterator[Stage]:
    """Yield the processes of these stages, in the order in which they run."""
    limits = {"machine": 45, "kernels": 100, "model": 80}
    for name, limit_s in limits.items():
        if name in names:
            yield Stage(name, limit_s)
    if "released" in names:
        for each in formats:
            yield Stage(f"released {each}", 75)
    if "server" in names:
        yield Stage("server", 110, kept_s=100)
