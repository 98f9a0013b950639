"""Turns the token ids of an answer into neutral events, the same wherever blocks are cut.

This file knows no dialect and no HTTP. Its events are append-only: it holds back whatever may still
become part of a character or of a stop string until that is decided.
"""

import codecs
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

from app.chat_format.events import Event, TextDelta, ToolCallEnd, merged
from app.chat_format.gemma import CHANNEL_END, AnswerParser, Control, Piece, Section
from app.prompting.vocabulary import Vocabulary
from engine.messages import TokenLogprobs


class TokenText:
    """Decodes a stream of tokens one by one. A character of several bytes comes out whole.

    No token is decoded twice. The decoding stream of the tokenizers library can't be used, because
    it fails on bytes that are not UTF-8.
    """

    def __init__(self, vocabulary: Vocabulary, begun: bytes = b"") -> None:
        """Decode what follows `begun`, the first bytes of a character."""
        self._vocabulary = vocabulary
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._bytes.setstate((begun, 0))

    @property
    def begun(self) -> bytes:
        """Returns the bytes of a character that is not complete yet."""
        return self._bytes.getstate()[0]

    def add(self, token: int) -> list[Piece]:
        """Returns the text and control tokens that are certain after this token."""
        control = self._vocabulary.controls.get(token)
        if control is not None:
            return [*self.end(), Control(control)]
        byte = self._vocabulary.byte(token)
        if byte is not None:
            return _pieces(self._bytes.decode(byte))
        return [*self.end(), *_pieces(self._vocabulary.word(token))]

    def end(self) -> list[Piece]:
        """Returns U+FFFD if a character has begun and was not completed."""
        return _pieces(self._bytes.decode(b"", final=True))


def _pieces(text: str) -> list[Piece]:
    return [text] if text else []


@dataclass
class StopStrings:
    """Cuts a text at its first stop string, however the text is cut into pieces."""

    stops: Sequence[str]
    matched: str | None = None  # the stop string in the text, if it had one
    _held: str = ""

    def feed(self, text: str) -> str:
        """Returns the text that is certain now. After a stop string it returns no more text."""
        if self.matched is not None:
            return ""
        held = self._held + text
        matches = [(start, stop) for stop in self.stops if (start := held.find(stop)) >= 0]
        if matches:
            start, self.matched = min(matches)
            self._held = ""
            return held[:start]
        keep = max((_overlap(held, stop) for stop in self.stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def release(self) -> str:
        """Returns the text that was held back, which turned out not to begin a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


@dataclass
class AnswerOutput:
    """Turns one answer's tokens into events. Stop strings count in its text only.

    `parser` reads the chat format. Raw completions have none: everything is text. The worker ends
    an answer at a token of `stop_tokens`, which has no text. `tokens` counts the tokens that were
    used, up to the one that completes a stop string or the last allowed call. Log-probabilities are
    kept for text tokens. The caller can take them when the first character of their token has been
    given out. Those of a stop string are dropped.
    """

    vocabulary: Vocabulary
    stops: Sequence[str] = ()
    parser: AnswerParser | None = None
    most_calls: int | None = None
    stop_tokens: Set[int] = frozenset()
    tokens: int = 0
    thinking_tokens: int = 0
    calls: list[ToolCallEnd] = field(default_factory=list)  # the ended calls, in order
    _stopped: bool = False  # by a stop token
    _untaken: list[int] = field(default_factory=list)  # the used tokens that nobody took
    _logprobs: list[tuple[int, TokenLogprobs]] = field(default_factory=list)
    _read_characters: int = 0  # of text; a log-probability is kept with its token's offset
    _given_characters: int = 0
    # The tokens whose section the parser has not decided yet, with what is kept if they are text.
    _undecided: list[tuple[int, TokenLogprobs | None]] = field(default_factory=list)
    _finished: bool = False
    _text: TokenText = field(init=False)
    _stop: StopStrings = field(init=False)

    def __post_init__(self) -> None:
        self._text = TokenText(self.vocabulary)
        self._stop = StopStrings(self.stops)

    @property
    def begun_character(self) -> bytes:
        """Returns the bytes of a character that the tokens so far have begun."""
        return self._text.begun

    @property
    def stop_string(self) -> str | None:
        """Returns the stop string that ended the text, or None."""
        return self._stop.matched

    @property
    def ended(self) -> bool:
        """Returns whether the answer is over, by a stop string or because it has enough calls."""
        enough = self.most_calls is not None and len(self.calls) >= self.most_calls
        return enough or self._stop.matched is not None

    def feed(self, tokens: Iterable[int], logprobs: Iterable[TokenLogprobs] = ()) -> list[Event]:
        """Returns the events that these tokens add, merged. An ended answer adds none."""
        events: list[Event] = []
        figures = iter(logprobs)
        for token in tokens:
            if self.ended or self._stopped:
                break
            self.tokens += 1
            self._untaken.append(token)
            figure = next(figures, None)
            if token in self.stop_tokens:
                self._stopped = True
            else:
                events += self._read_token(token, figure)
        return merged(events)

    def take_tokens(self) -> list[int]:
        """Returns the tokens that were used since the last call of this method."""
        taken, self._untaken = self._untaken, []
        return taken

    def take_logprobs(self) -> list[TokenLogprobs]:
        """Returns the log-probabilities of the text given out since the last call of this method.

        After the end of the answer it returns all remaining ones, also of tokens without text.
        """
        count = sum(start < self._given_characters for start, _ in self._logprobs)
        if self._finished:
            count = len(self._logprobs)
        taken, self._logprobs = self._logprobs[:count], self._logprobs[count:]
        return [figure for _, figure in taken]

    def finish(self, *, cut_off: bool = False) -> list[Event]:
        """Returns the events of the text that was held back and belongs to the answer.

        Set `cut_off` if the model did not end the answer itself.
        """
        if self.ended:
            return []
        events = [event for piece in self._text.end() for event in self._read(piece)]
        if self.parser is not None:
            if self.parser.section == "undecided":
                self._keep(self._undecided)
            events += self._until_stop(self.parser.finish(cut_off=cut_off or self._stopped))
        if not self.ended:
            events += self._texts(self._stop.release())
            self._finished = True
        return merged(events)

    @property
    def _section(self) -> Section:
        return "text" if self.parser is None else self.parser.section

    def _read_token(self, token: int, figure: TokenLogprobs | None) -> list[Event]:
        """Returns the events that a token adds. Counts it, and keeps the figure of a text token.

        A token whose section is undecided waits for the token that decides.
        """
        before, read = self._section, self._read_characters
        start = read + (0 if self.parser is None else self.parser.undecided_characters)
        events = [event for piece in self._text.add(token) for event in self._read(piece)]
        after, has_text = self._section, self._read_characters > read
        if before == "undecided" and after != "undecided" and not has_text:
            before = "thinking"  # the answer's beginning has turned out to be a thought
        if before == "header" and self.vocabulary.controls.get(token) == CHANNEL_END:
            before = "thinking"  # a thought without text
        if after != before:
            if "thinking" in (before, after):
                self.thinking_tokens += len(self._undecided)
            elif before == "undecided":
                self._keep(self._undecided)
            self._undecided = []
        if after in ("undecided", "header"):
            self._undecided.append((start, figure if after == "undecided" else None))
        elif "thinking" in (before, after):
            self.thinking_tokens += 1
        elif token not in self.vocabulary.controls and (
            before == "text" or (before != "call" and has_text)
        ):
            self._keep([(start, figure)])
        return events

    def _keep(self, figures: Iterable[tuple[int, TokenLogprobs | None]]) -> None:
        self._logprobs += [(start, figure) for start, figure in figures if figure is not None]

    def _read(self, piece: Piece) -> list[Event]:
        if self.parser is not None:
            return self._until_stop(self.parser.feed(piece))
        return self._until_stop([TextDelta(piece)]) if isinstance(piece, str) else []

    def _until_stop(self, parsed: Iterable[Event]) -> list[Event]:
        """Returns the events that are certain, up to the answer's end."""
        events: list[Event] = []
        for event in parsed:
            if self.ended:
                break
            if isinstance(event, TextDelta):
                self._read_characters += len(event.text)
                events += self._texts(self._stop.feed(event.text))
                continue
            if isinstance(event, ToolCallEnd):
                self.calls.append(event)
            events += [*self._texts(self._stop.release()), event]
        return events

    def _texts(self, text: str) -> list[Event]:
        self._given_characters += len(text)
        return [TextDelta(text)] if text else []
