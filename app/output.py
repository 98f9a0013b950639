"""Token ids to neutral events: characters, stop strings and format that straddle blocks.

Knows no dialect and no HTTP: what it gives is append-only. What may still become part of a
character or of a stop string is held back until that is decided.
"""

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

from app.gemma_format import (
    AnswerParser,
    Call,
    Control,
    Event,
    Piece,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
)
from app.vocabulary import Vocabulary
from engine.messages import TokenLogprobs


class TokenText:
    """One stream of tokens as text, token by token; a character of several bytes comes whole.

    Nothing is decoded twice. The tokenizers library's own stream fails on bytes that are no UTF-8.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> list[Piece]:
        """What is certain with this token."""
        control = self._vocabulary.controls.get(token)
        if control is not None:
            return [*self.end(), Control(control)]
        byte = self._vocabulary.byte(token)
        if byte is not None:
            return _pieces(self._bytes.decode(byte))
        return [*self.end(), *_pieces(self._vocabulary.word(token))]

    def end(self) -> list[Piece]:
        """A character that was begun and never completed, as U+FFFD."""
        return _pieces(self._bytes.decode(b"", final=True))


def _pieces(text: str) -> list[Piece]:
    return [text] if text else []


@dataclass
class StopStrings:
    """Text up to the first of some strings, which may come in any pieces."""

    stops: Sequence[str]
    found: str | None = None
    _held: str = ""

    def feed(self, text: str) -> str:
        """The text that is certain with this; none after a stop string was found."""
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
        """What was held back and is text after all."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


@dataclass
class AnswerOutput:
    """One answer's tokens as events. Stop strings are looked for in its text alone.

    `parser` reads the chat format; without one, of a raw completion, everything is text.
    `tokens` counts those used, the one that completes a stop string or the last call last. The
    log-probabilities of text tokens wait for the caller to take them, each until the first
    character of its token is given out; those of a stop string are part of no answer.
    """

    vocabulary: Vocabulary
    stops: Sequence[str] = ()
    parser: AnswerParser | None = None
    most_calls: int | None = None
    tokens: int = 0
    thinking_tokens: int = 0
    _logprobs: list[tuple[int, TokenLogprobs]] = field(default_factory=list)
    _read_characters: int = 0  # of text; where a token begins goes with its log-probabilities
    _given_characters: int = 0
    _finished: bool = False
    _text: TokenText = field(init=False)
    _stop: StopStrings = field(init=False)

    def __post_init__(self) -> None:
        self._text = TokenText(self.vocabulary)
        self._stop = StopStrings(self.stops)

    @property
    def stop_string(self) -> str | None:
        """The one that was found."""
        return self._stop.found

    @property
    def calls(self) -> Sequence[Call]:
        """The tool calls that have ended, in their order."""
        return self.parser.calls if self.parser is not None else ()

    @property
    def ended(self) -> bool:
        """Whether what follows is no part of the answer: after a stop string, or enough calls."""
        enough = self.most_calls is not None and len(self.calls) >= self.most_calls
        return enough or self._stop.found is not None

    def feed(self, tokens: Iterable[int], logprobs: Iterable[TokenLogprobs] = ()) -> list[Event]:
        """What these tokens add for certain, neighbours of a kind as one; nothing when ended."""
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
        """Those of the text given out since the last time; at the end of those without any too."""
        count = sum(start < self._given_characters for start, _ in self._logprobs)
        if self._finished:
            count = len(self._logprobs)
        taken, self._logprobs = self._logprobs[:count], self._logprobs[count:]
        return [figure for _, figure in taken]

    def finish(self) -> list[Event]:
        """What was held back and is part of the answer after all."""
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
        return [*self._texts(self._stop.release()), event]

    def _texts(self, text: str) -> list[Event]:
        self._given_characters += len(text)
        return [TextDelta(text)] if text else []


def merged(events: Iterable[Event]) -> list[Event]:
    """The same with neighbours of a kind as one."""

    def join(before: list[Event], event: Event) -> list[Event]:
        match before, event:
            case [*rest, TextDelta(text=text)], TextDelta(text=more):
                return [*rest, TextDelta(text + more)]
            case [*rest, ThinkingDelta(text=text)], ThinkingDelta(text=more):
                return [*rest, ThinkingDelta(text + more)]
            case [*rest, ToolCallDelta() as call], ToolCallDelta(name=None, arguments=more):
                return [*rest, replace(call, arguments=call.arguments + more)]
        return [*before, event]

    return reduce(join, events, [])
