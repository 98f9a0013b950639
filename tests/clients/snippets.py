"""The snippets of a Markdown page: fenced code, and the output that the page promises of it.

A fence of `python`, `js` or `sh` is a snippet; the fence without a language right after it is its
output, in which `...` stands for any text. Any other fence is an error, so that none goes unrun.
"""

import re
from collections import Counter
from dataclasses import dataclass

from markdown_it import MarkdownIt

LANGUAGES = ("python", "js", "sh")


@dataclass(frozen=True)
class Snippet:
    """Code under a heading; `name` is that heading and, from 1, which of its snippets this is."""

    name: str
    language: str
    code: str
    output: str

    def promises(self, text: str) -> bool:
        """Whether `text` is the output shown; blank space at the ends does not count."""
        parts = map(re.escape, self.output.strip().split("..."))
        return re.fullmatch("(?s:.*?)".join(parts), text.strip()) is not None


def snippets(page: str) -> list[Snippet]:
    """Every snippet of a page in its order; raises ValueError for a fence that is not of one."""
    heading, counts = "", Counter[str]()
    found = []
    rest = iter(MarkdownIt().parse(page))
    for token in rest:
        if token.type == "heading_open":
            heading = next(rest).content
        if token.type != "fence":
            continue
        if token.info not in LANGUAGES:
            raise ValueError(f"{heading}: a fence of {token.info!r} is no snippet's")
        output = next(rest, None)
        if output is None or (output.type, output.info) != ("fence", ""):
            raise ValueError(f"{heading}: no output follows the snippet\n{token.content}")
        counts[heading] += 1
        name = f"{heading} {counts[heading]}"
        found.append(Snippet(name, token.info, token.content, output.content))
    return found
