"""Reads the snippets of a Markdown page: fenced code and the output that the page shows for it.

A fence of `python`, `js` or `sh` is a snippet. The fence without a language right after it is its
output, in which `...` stands for any text. Any other fence is an error, so that no code on the page
stays untested.
"""

import re
from collections import Counter
from dataclasses import dataclass

from markdown_it import MarkdownIt

LANGUAGES = ("python", "js", "sh")


@dataclass(frozen=True)
class Snippet:
    """Code under a heading. `name` is the heading and the snippet's number under it, from 1."""

    name: str
    language: str
    code: str
    output: str

    def promises(self, text: str) -> bool:
        """Returns whether `text` is the output shown, except for blank space at both ends."""
        parts = map(re.escape, self.output.strip().split("..."))
        return re.fullmatch("(?s:.*?)".join(parts), text.strip()) is not None


def snippets(page: str) -> list[Snippet]:
    """Returns every snippet of a page, in order.

    Raises ValueError for a snippet without output and for a fence that belongs to no snippet.
    """
    heading, counts = "", Counter[str]()
    result = []
    tokens = iter(MarkdownIt().parse(page))
    for token in tokens:
        if token.type == "heading_open":
            heading = next(tokens).content
        if token.type != "fence":
            continue
        if token.info not in LANGUAGES:
            raise ValueError(f"{heading}: a fence of {token.info!r} belongs to no snippet")
        output = next(tokens, None)
        if output is None or (output.type, output.info) != ("fence", ""):
            raise ValueError(f"{heading}: no output follows the snippet\n{token.content}")
        counts[heading] += 1
        name = f"{heading} {counts[heading]}"
        result.append(Snippet(name, token.info, token.content, output.content))
    return result
