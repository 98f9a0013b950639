"""Tables that a measurement writes into a page of the documentation.

A page has a line `<!-- easel bench NAME -->` and behind it a line `<!-- end -->`. What is between
them is replaced.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import typer

_END = "<!-- end -->"


def check(page: Path, name: str) -> None:
    """Raises typer.BadParameter if a page has no lines between which a table is written."""
    if not _between(name).search(page.read_text()):
        raise typer.BadParameter(f"{page} has no lines {_begin(name)} and {_END}")


def write(page: Path, name: str, text: str) -> None:
    """Replace what a page has between the lines of a measurement by this text."""
    made = f"{_begin(name)}\n{text}\n{_END}"
    page.write_text(_between(name).sub(lambda _: made, page.read_text(), count=1))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table, whose columns behind the first one are aligned to the right."""
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _begin(name: str) -> str:
    return f"<!-- easel bench {name} -->"


def _between(name: str) -> re.Pattern[str]:
    return re.compile(f"{re.escape(_begin(name))}.*?{_END}", re.DOTALL)
