"""Keeps what a client typed apart from the control tokens that a chat template writes."""

import secrets
from collections.abc import Sequence
from typing import Any

from app.prompting.template import Message
from app.prompting.vocabulary import Vocabulary


class Marks:
    """Marks what a client typed that looks like a control token, so that it stays text.

    A mark is made of digits and two private characters, so no filter of a template changes it, and
    of a random number, so no client can guess it.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._typed: list[str] = []
        self._nonce = secrets.randbelow(10**18)

    @property
    def end(self) -> str:
        """Returns a mark that stands for no text, to find a place in what a template made."""
        return f"\ue000{self._nonce}:end\ue001"

    def moved_texts(self, messages: Sequence[Message]) -> dict[str, str]:
        """Take the texts out of messages that also call, and mark the calls that they precede.

        Returns the texts by these marks.
        """
        texts = {}
        for index, message in enumerate(messages):
            text = message["content"]
            if "tool_calls" in message and isinstance(text, str) and text.strip():
                mark = f"\ue000{self._nonce}:text{index}\ue001"
                function = message["tool_calls"][0]["function"]
                function["name"] = mark + function["name"]
                texts[mark], message["content"] = text.strip(), ""
        return texts

    def marked(self, value: Any) -> Any:
        """Returns the value with all of its strings marked, including the keys of mappings."""
        match value:
            case str():
                return self._mark(value)
            case dict():
                return {self._mark(key): self.marked(each) for key, each in value.items()}
            case list():
                return [self.marked(each) for each in value]
        return value

    def length(self, text: str) -> int:
        """Returns the length of a rendered text with what its marks stand for."""
        first, *marked = text.split(f"\ue000{self._nonce}:")
        length = len(first)
        for each in marked:
            number, _, plain = each.partition("\ue001")
            length += len(self._typed[int(number)]) + len(plain)
        return length

    def tokens(self, text: str) -> list[int]:
        """Returns the token ids of a rendered text. What is marked has no control tokens."""
        encode, literally = self._vocabulary.encode, self._vocabulary.encode_literally
        typed = {part: literally(part) for part in set(self._typed)}
        # Every part but the first begins with a mark, which stands for a typed text.
        first, *marked = text.split(f"\ue000{self._nonce}:")
        tokens = encode(first)
        for each in marked:
            number, _, plain = each.partition("\ue001")
            tokens += [*typed[self._typed[int(number)]], *encode(plain)]
        return tokens

    def _mark(self, text: str) -> str:
        """Replace every control token in a typed text by a mark.

        A control token's beginning at the end of the text is replaced too, because the template may
        put another text right behind it.
        """

        def mark(part: str) -> str:
            self._typed.append(part)
            return f"\ue000{self._nonce}:{len(self._typed) - 1}\ue001"

        text = self._vocabulary.typed_control.sub(lambda match: mark(match.group()), text)
        begun = self._vocabulary.begun_control(text)
        return text[: begun.start] + mark(text[begun]) + text[begun.stop :] if text[begun] else text
