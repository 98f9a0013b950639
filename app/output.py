"""Token ids to text: characters and stop strings that straddle tokens and blocks.

Knows no dialect and no HTTP: it gives neutral text, append-only. What may still become part of
a character or of a stop string is held back until that is decided.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


@dataclass
class TextOutput:
    """One answer's text so far. `tokens` counts those used, the one that completes a stop last."""

    tokenizer: Tokenizer
    stops: tuple[str, ...] = ()
    tokens: int = 0
    stopped: bool = False
    _held: str = ""
    _undecoded: list[int] = field(default_factory=list)
    _stream: DecodeStream = field(default_factory=lambda: DecodeStream(skip_special_tokens=True))

    def feed(self, tokens: Iterable[int]) -> str:
        """The text that these tokens add for certain; nothing after a stop string was found."""
        text = ""
        for token in tokens:
            if self.stopped:
                break
            self.tokens += 1
            self._undecoded.append(token)
            new = self._stream.step(self.tokenizer, token)
            if new is not None:
                self._undecoded.clear()
                text += self._release(new)
        return text

    def finish(self) -> str:
        """What was held back and is text after all; a cut character comes out as U+FFFD."""
        if self.stopped:
            return ""
        rest = self.tokenizer.decode(self._undecoded, skip_special_tokens=True)
        self._undecoded.clear()
        text = self._release(rest)
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
