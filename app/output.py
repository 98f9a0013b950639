"""Token ids to text: characters and stop strings that straddle tokens and blocks.

Knows no dialect and no HTTP: it gives neutral text, append-only. What may still become part of
a character or of a stop string is held back until that is decided.
"""

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")


class TokenText:
    """One stream of tokens as text, token by token; a character of several bytes comes whole.

    Words decode one by one in the tokenizers served here (bytes are the exception), so nothing
    is decoded twice. The tokenizers library's own stream fails on bytes that are no UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """The text that is certain with this token; control tokens have none."""
        byte = _BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token) or "")
        if byte:
            return self._bytes.decode(bytes.fromhex(byte[1]))
        return self.end() + self._tokenizer.decode([token], skip_special_tokens=True)

    def end(self) -> str:
        """A character that was begun and never completed, as U+FFFD."""
        return self._bytes.decode(b"", final=True)


@dataclass
class TextOutput:
    """One answer's text so far. `tokens` counts those used, the one that completes a stop last."""

    tokenizer: Tokenizer
    stops: tuple[str, ...] = ()
    tokens: int = 0
    stopped: bool = False
    _held: str = ""
    _text: TokenText = field(init=False)

    def __post_init__(self) -> None:
        self._text = TokenText(self.tokenizer)

    def feed(self, tokens: Iterable[int]) -> str:
        """The text that these tokens add for certain; nothing after a stop string was found."""
        text = ""
        for token in tokens:
            if self.stopped:
                break
            self.tokens += 1
            text += self._release(self._text.add(token))
        return text

    def finish(self) -> str:
        """What was held back and is text after all; a cut character comes out as U+FFFD."""
        if self.stopped:
            return ""
        text = self._release(self._text.end())
        if not self.stopped:
            text += self._held
            self._held = ""
        return text

    def _release(self, new: str) -> str:
        held = self._held + new
        found = [at for stop in self.stops if (at := held.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return held[: min(found)]
        keep = max((_overlap(held, stop) for stop in self.stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
