"""A checkpoint's tokens: text to token ids and single tokens to text. Needs no torch.

Control tokens (turns, thinking, tool calls, images) are kept apart from text that looks like one,
in both directions: what a user types never becomes one.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_CONTROL = re.compile(r"<\|.*>|<.*\|>")


class Vocabulary:
    """The tokenizer of a `tokenizer.json`."""

    def __init__(self, file: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(file))
        # The same tokenizer to which "<turn|>" is six characters.
        self._literal = Tokenizer.from_str(self.tokenizer.to_str())
        self._literal.encode_special_tokens = True

    @cached_property
    def controls(self) -> Mapping[int, str]:
        """Control tokens by id. Line breaks and tags, which may be added tokens too, are text."""
        return {
            token: added.content
            for token, added in self.tokenizer.get_added_tokens_decoder().items()
            if added.special or _CONTROL.fullmatch(added.content)
        }

    @cached_property
    def typed_control(self) -> re.Pattern[str]:
        """Finds in a text what looks like a control token."""
        longest_first = sorted(self.controls.values(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))

    def begun_control(self, text: str) -> slice:
        """Where the text ends, but for white space, in the first characters of a control token."""
        end = len(text.rstrip())
        longest = max(map(len, self._beginnings))
        sizes = range(min(longest, end), 0, -1)
        size = next((size for size in sizes if text[end - size : end] in self._beginnings), 0)
        return slice(end - size, end)

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        names = self.controls.values()
        return frozenset(name[:size] for name in names for size in range(1, len(name)))

    def encode(self, text: str) -> list[int]:
        """Token ids of text in which control tokens are meant."""
        return _ids(self.tokenizer, _encodable(text))

    def encode_literally(self, text: str) -> list[int]:
        """Token ids of text in which nothing is a control token."""
        text = _encodable(text)
        tokens = _ids(self._literal, text)
        if self.controls.keys().isdisjoint(tokens):
            return tokens
        # A tokenizer may have a control token among its words too; its characters are not it.
        return [token for character in text for token in _ids(self._literal, character)]

    def byte(self, token: int) -> bytes | None:
        """The byte that this token stands for, if it is not a word."""
        byte = _BYTE_TOKEN.fullmatch(self.tokenizer.id_to_token(token) or "")
        return None if byte is None else bytes.fromhex(byte[1])

    def word(self, token: int) -> str:
        """The text of a token that is no byte. Words decode one by one in all that is served."""
        return self.tokenizer.decode([token], skip_special_tokens=False)

    def token_bytes(self, token: int) -> bytes:
        """What a token is in an answer's text, a control token by its name."""
        return self.byte(token) or self.word(token).encode()

    def decode(self, tokens: list[int]) -> str:
        """Token ids as text, control tokens by their names."""
        return self.tokenizer.decode(tokens, skip_special_tokens=False)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """As a batch of one, which lets other threads run meanwhile: `encode` holds up them all."""
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return list(encoding.ids)


def _encodable(text: str) -> str:
    """Lone surrogates, which JSON can carry and UTF-8 cannot, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
