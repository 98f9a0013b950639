"""A table of the device profiles: their settings for the released model and the resulting figures.

The figures are not measured: `engine/sizing/roofline.py` and `engine/sizing/plan.py` compute them.
docs/devices.md contains the table and the profiles' reasons exactly as this module writes them, and
a test compares the two.
"""

from collections.abc import Iterator
from textwrap import fill

from bench.compare import Row
from bench.roofline import CONTEXT, released
from engine.config import DeviceProfile, EngineConfig, profile_names
from engine.sizing.dimensions import RELEASED_MODEL
from engine.sizing.plan import largest_context, make_plan, most_canvases
from engine.sizing.profiles import apply_profile
from engine.sizing.roofline import device_step_s, step_cost

TOKENS_A_STEP = 15
_WIDTH = 104  # of the lines in docs/devices.md
COLUMNS = [
    "experts",
    "linears",
    "context",
    "canvases",
    "speculate",
    "prefixes_mib",
    "needs_gb",
    "of_gb",
    "largest_context",
    "most_canvases",
    "step_ms",
    "tokens_s",
]


def rows() -> Iterator[Row]:
    for name in profile_names():
        hardware = DeviceProfile.read(name).hardware
        if hardware is None:
            continue
        config = apply_profile(EngineConfig(model=RELEASED_MODEL), name, quantized=False)
        cost = step_cost(released(), config.formats, context=CONTEXT)
        step_s, memory = device_step_s(cost, hardware), hardware.usable_bytes
        yield {
            "case": name,
            "experts": config.formats.experts,
            "linears": config.formats.linears,
            "context": config.max_context,
            "canvases": config.max_active,
            "speculate": "on" if config.speculate else "off",
            "prefixes_mib": config.prefix_cache_mib,
            "needs_gb": round(make_plan(released(), config, cuda=True).total / 1e9, 1),
            "of_gb": round(memory / 1e9, 1),
            "largest_context": largest_context(released(), config, memory, cuda=True),
            "most_canvases": most_canvases(released(), config, memory, cuda=True),
            "step_ms": float(f"{step_s * 1e3:.3g}"),
            "tokens_s": round(TOKENS_A_STEP / step_s),
        }


def table() -> str:
    """Returns the rows as a Markdown table."""
    heads = ["profile", *(column.replace("_", " ") for column in COLUMNS)]
    lines = [heads, ["---"] * len(heads)]
    for row in rows():
        cells = [row["case"], *(row[column] for column in COLUMNS)]
        lines.append([f"{each:,}" if isinstance(each, int) else str(each) for each in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reasons() -> str:
    """Returns the profiles' reasons in Markdown, under one heading for each profile."""
    sections = []
    for name in sorted(profile_names(), key=lambda name: (name != "demo", name)):
        reasons = DeviceProfile.read(name).why.model_dump()
        lines = [
            fill(
                f"- **{about.replace('_', ' ').capitalize()}**: {' '.join(reason.split())}",
                width=_WIDTH,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            for about, reason in reasons.items()
        ]
        sections.append("\n".join([f"## {name}", "", *lines]))
    return "\n\n".join(sections)
