"""A checkpoint's tokenizer: text to token ids, and token ids to text. It needs no torch.

Control tokens (turns, thinking, tool calls, images) are kept apart from text that looks like one,
in both directions. A text that a user types never becomes a control token.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from engine.sizing.model_files import ModelFilesError, is_pointer, one_line, pointer_fault

_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_CONTROL = re.compile(r"<\|.*>|<.*\|>")


class Vocabulary:
    """The tokenizer of a `tokenizer.json`."""

    def __init__(self, file: Path) -> None:
        """Raises ModelFilesError, which names the file, if it is missing or damaged."""
        self.tokenizer = _read(file)
        # The same tokenizer, but to this one "<turn|>" is ordinary text.
        self._literal = Tokenizer.from_str(self.tokenizer.to_str())
        self._literal.encode_special_tokens = True

    def beyond(self, vocab_size: int) -> list[int]:
        """Returns the ids that a model with a vocabulary of this size lacks, sorted."""
        ids = self.tokenizer.get_vocab(with_added_tokens=True).values()
        return sorted(token for token in ids if token >= vocab_size)

    @cached_property
    def longest(self) -> int:
        """Returns the most characters of a text that one token can stand for."""
        return max(map(len, self.tokenizer.get_vocab(with_added_tokens=True)))

    @property
    def first_token(self) -> int | None:
        """Returns the token that `tokenizer.json` puts in front of every text, or None."""
        return next(iter(self.tokenizer.encode("").ids), None)

    @cached_property
    def controls(self) -> Mapping[int, str]:
        """Returns the control tokens by id. Added tokens for line breaks and tags are text."""
        return {
            token: added.content
            for token, added in self.tokenizer.get_added_tokens_decoder().items()
            if added.special or _CONTROL.fullmatch(added.content)
        }

    def control_ids(self, names: Iterable[str]) -> list[int]:
        """Returns the ids of those control tokens with these names that the tokenizer has."""
        ids = map(self.tokenizer.token_to_id, names)
        return [token for token in ids if token is not None and token in self.controls]

    @cached_property
    def typed_control(self) -> re.Pattern[str]:
        """Returns a pattern that matches the name of any control token."""
        longest_first = sorted(self.controls.values(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))

    def begun_control(self, text: str) -> slice:
        """Returns the slice at the text's end that may be the beginning of a control token.

        White space behind it is ignored. The slice is empty if there is no such beginning.
        """
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
        """Returns the token ids of a text in which names of control tokens become these tokens."""
        return _ids(self.tokenizer, _encodable(text))

    def encode_literally(self, text: str) -> list[int]:
        """Returns the token ids of a text in which nothing is a control token."""
        text = _encodable(text)
        tokens = _ids(self._literal, text)
        if self.controls.keys().isdisjoint(tokens):
            return tokens
        # A tokenizer may have a control token among its words too. Its single characters are safe.
        return [token for character in text for token in _ids(self._literal, character)]

    def word_tokens(self, word: str) -> set[int] | None:
        """Returns the tokens that are a whole word, with or without a space before it.

        Returns None if one of these two forms has several tokens and none of them is such a token:
        a ban of the tokens could then not ban the word.
        """
        bare = word.lstrip(" ")
        forms = [self.encode_literally(form) for form in ((bare, f" {bare}") if bare else (word,))]
        whole = {form[0] for form in forms if len(form) == 1}
        return None if any(whole.isdisjoint(form) for form in forms) else whole

    def byte(self, token: int) -> bytes | None:
        """Returns the byte that this token stands for, or None if it is a word."""
        byte = _BYTE_TOKEN.fullmatch(self.tokenizer.id_to_token(token) or "")
        return None if byte is None else bytes.fromhex(byte[1])

    def word(self, token: int) -> str:
        """Returns the text of a token that is not a byte.

        The words of all served tokenizers can be decoded one by one.
        """
        return self.tokenizer.decode([token], skip_special_tokens=False)

    def token_bytes(self, token: int) -> bytes:
        """Returns a token's bytes in an answer's text. A control token has those of its name."""
        return self.byte(token) or self.word(token).encode()

    def all_bytes(self) -> dict[int, bytes]:
        """Returns the bytes in an answer's text of every token, as `token_bytes` does for one."""
        names = self.tokenizer.get_vocab(with_added_tokens=True)
        tokens = list(names.values())
        words = self.tokenizer.decode_batch(
            [[token] for token in tokens], skip_special_tokens=False
        )
        return {
            token: bytes.fromhex(byte[1])
            if (byte := _BYTE_TOKEN.fullmatch(name))
            else word.encode()
            for (name, token), word in zip(names.items(), words, strict=True)
        }

    def decode(self, tokens: list[int]) -> str:
        """Returns the text of token ids, with control tokens as their names."""
        return self.tokenizer.decode(tokens, skip_special_tokens=False)


def _read(file: Path) -> Tokenizer:
    try:
        if is_pointer(file):
            raise ModelFilesError(pointer_fault(file))
        tokenizer = Tokenizer.from_file(str(file))
    except ModelFilesError:
        raise
    except Exception as error:  # tokenizers raises a bare Exception
        raise ModelFilesError(f"{file} can't be read: {one_line(error)}") from error
    # A file may have the settings with which a training batched its texts. As in Transformers, they
    # do not apply: a prompt is never cut or filled up.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the token ids. A batch of one lets other threads run meanwhile, `encode` does not."""
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return list(encoding.ids)


def _encodable(text: str) -> str:
    """Returns the text with U+FFFD for lone surrogates, which exist in JSON but not in UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
