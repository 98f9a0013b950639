"""Turns the token ids of an answer into neutral events, wherever blocks are cut.

This file knows no dialect and no HTTP. Its events are append-only: it holds back whatever may still
become part of a character or of a stop string until that is decided.
"""

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from app.chat_format.events import Event, TextDelta, ToolCallEnd, merged
from app.chat_format.gemma import AnswerParser, Control, Piece
from app.prompting.vocabulary import Vocabulary
from engine.messages import TokenLogprobs


class TokenText:
    """Decodes one stream of tokens, one by one. A character of several bytes comes out whole.

    No token is decoded twice. The stream of the tokenizers library is no use here, because it fails
    on bytes that are not UTF-8.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> list[Piece]:
        """Returns the text and control tokens that are certain once this token is there."""
        control = self._vocabulary.controls.get(token)
        if control is not None:
            return [*self.end(), Control(control)]
        byte = self._vocabulary.byte(token)
        if byte is not None:
            return _pieces(self._bytes.decode(byte))
        return [*self.end(), *_pieces(self._vocabulary.word(token))]

    def end(self) -> list[Piece]:
        """Returns U+FFFD if a character was begun and never completed."""
        return _pieces(self._bytes.decode(b"", final=True))


def _pieces(text: str) -> list[Piece]:
    return [text] if text else []


@dataclass
class StopStrings:
    """Cuts a text at the first stop string in it, in whatever pieces the text comes."""

    stops: Sequence[str]
    found: str | None = None
    _held: str = ""

    def feed(self, text: str) -> str:
        """Returns the text that is certain now. Once a stop string was found it returns none."""
        if self.found is not None:
            return ""
        held = self._held + text
        places = [(at, stop) for stop in self.stops if (at := held.find(stop)) >= 0]
        if places:
            at, self.found = min(places)
            self._held = ""
            return held[:at]
        keep = max((_overlap(held, stop) for stop in self.stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def release(self) -> str:
        """Returns the text that was held back and turned out not to be a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


@dataclass
class AnswerOutput:
    """Turns one answer's tokens into events. Stop strings are looked for in its text only.

    `parser` reads the chat format; without one, for a raw completion, everything is text. `tokens`
    counts the tokens that were used, up to the one that completes a stop string or the last allowed
    call. Log-probabilities of text tokens wait for the caller to take them, each until the first
    character of its token has been given out. Those of a stop string belong to no answer.
    """

    vocabulary: Vocabulary
    stops: Sequence[str] = ()
    parser: AnswerParser | None = None
    most_calls: int | None = None
    tokens: int = 0
    thinking_tokens: int = 0
    calls: list[ToolCallEnd] = field(default_factory=list)  # those that have ended, in their order
    _logprobs: list[tuple[int, TokenLogprobs]] = field(default_factory=list)
    _read_characters: int = 0  # of text; log-probabilities are kept with where their token begins
    _given_characters: int = 0
    _finished: bool = False
    _text: TokenText = field(init=False)
    _stop: StopStrings = field(init=False)

    def __post_init__(self) -> None:
        self._text = TokenText(self.vocabulary)
        self._stop = StopStrings(self.stops)

    @property
    def stop_string(self) -> str | None:
        """Returns the stop string that was found, if one was."""
        return self._stop.found

    @property
    def ended(self) -> bool:
        """Returns whether the answer is over, by a stop string or because it has enough calls."""
        enough = self.most_calls is not None and len(self.calls) >= self.most_calls
        return enough or self._stop.found is not None

    def feed(self, tokens: Iterable[int], logprobs: Iterable[TokenLogprobs] = ()) -> list[Event]:
        """Returns the events that these tokens add, merged. Once the answer has ended, none."""
        events: list[Event] = []
        figures = iter(logprobs)
        for token in tokens:
            if self.ended:
                break
            self.tokens += 1
            figure = next(figures, None)
            start = self._read_characters
            place = "text" if self.parser is None else self.parser.place
            for piece in self._text.add(token):
                events += self._read(piece)
            if place == "thinking" or (self.parser and self.parser.place == "thinking"):
                self.thinking_tokens += 1
            elif place == "text" and token not in self.vocabulary.controls and figure is not None:
                self._logprobs.append((start, figure))
        return merged(events)

    def take_logprobs(self) -> list[TokenLogprobs]:
        """Returns the log-probabilities of text given out since the last call of this method.

        At the end of the answer these are all that are left, also of tokens that have no text.
        """
        count = sum(start < self._given_characters for start, _ in self._logprobs)
        if self._finished:
            count = len(self._logprobs)
        taken, self._logprobs = self._logprobs[:count], self._logprobs[count:]
        return [figure for _, figure in taken]

    def finish(self) -> list[Event]:
        """Returns the events of what was held back and is part of the answer after all."""
        if self.ended:
            return []
        events = [event for piece in self._text.end() for event in self._read(piece)]
        if self.parser is not None:
            events += [out for event in self.parser.finish() for out in self._until_stop(event)]
        if not self.ended:
            events += self._texts(self._stop.release())
            self._finished = True
        return merged(events)

    def _read(self, piece: Piece) -> list[Event]:
        if self.parser is not None:
            parsed = self.parser.feed(piece)
        else:
            parsed = [TextDelta(piece)] if isinstance(piece, str) else []
        return [out for event in parsed for out in self._until_stop(event)]

    def _until_stop(self, event: Event) -> list[Event]:
        if isinstance(event, TextDelta):
            self._read_characters += len(event.text)
            return self._texts(self._stop.feed(event.text))
        if isinstance(event, ToolCallEnd):
            self.calls.append(event)
        return [*self._texts(self._stop.release()), event]

    def _texts(self, text: str) -> list[Event]:
        self._given_characters += len(text)
        return [TextDelta(text)] if text else []
