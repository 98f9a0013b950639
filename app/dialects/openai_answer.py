"""The JSON that answers of chat completions and raw completions share."""

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from app.answer.figures import Figures, diffusion, usage
from app.answer.frames import Frame
from app.answer.generation import Choice, Delta, Finished, answer_events, whole_answers
from app.answer.request import AnswerRequest
from app.dialects.openai_fields import ApiRequest
from app.dialects.recording import record
from app.errors import ApiError, error_body
from app.services import Services
from app.sse import event_stream, unreceived_bytes
from engine.messages import GenerateRequest

MOST_UNRECEIVED_BYTES = 16 * 2**10  # drafts of a large canvas have 5 KB


@dataclass(frozen=True)
class OpenAIAnswer(ABC):
    """Makes the answer to one request, whole or as chunks. A subclass writes the choices.

    The whole answer begins with `head`, and so does every chunk. The ids of tokens are sent as vLLM
    does it.
    """

    object: ClassVar[str]
    chunk_object: ClassVar[str]
    endpoint: ClassVar[str]

    services: Services
    request: AnswerRequest
    prepared: Sequence[GenerateRequest]
    head: dict[str, Any]
    body: ApiRequest

    async def whole(self) -> Response:
        choices = await whole_answers(self.services, self.request, self.prepared)
        figures = [choice.end.figures for choice in choices]
        return JSONResponse(
            {
                **self.head,
                "object": self.object,
                **self._prompt_head(),
                "choices": [
                    {**self._whole(choice), **self._tokens(choice.tokens)} for choice in choices
                ],
                "usage": usage(figures, self.request.n),
                "diffusion": self._diffusion([choice.end for choice in choices]),
            }
        )

    def stream(self, http: Request) -> Response:
        """Returns a stream that is the same answer as `whole`."""
        return event_stream(self._chunks(http), self.services.settings.stream_idle_s)

    async def _chunks(self, http: Request) -> AsyncGenerator[str, None]:
        head = {**self.head, "object": self.chunk_object}
        if self.body.include_usage:
            head["usage"] = None  # OpenAI's specification has null in every chunk but the last

        def chunk(choice: dict[str, Any], tokens: list[int], figures: Figures, **more: Any) -> str:
            if self.body.continuous_usage:
                more["usage"] = usage([figures], 1)
            choices = [{**choice, **self._tokens(tokens)}]
            return json.dumps({**head, "choices": choices, **more}, ensure_ascii=False)

        for opening in self._openings():
            prompt = self.request.prompts[opening["index"] // self.request.n]
            figures = Figures(len(prompt.tokens))
            yield chunk(opening, [], figures, **self._prompt_head())
        ends: dict[int, Finished] = {}
        try:
            events = answer_events(self.services, self.request, self.prepared)
            async with aclosing(events):
                async for event in events:
                    match event:
                        case Delta():
                            added = self._added(event)
                            if added is not None:
                                yield chunk(added, event.tokens, event.figures)
                        case Frame(settled=None) if self._is_behind(http):
                            self.services.metrics.drafts_dropped.inc()
                        case Frame():
                            shown = event.sent(self.services.prompts.vocabulary)
                            nothing = self._nothing(event.choice)
                            yield chunk(nothing, [], event.figures, diffusion=shown)
                        case Finished():
                            ends[event.choice] = event
                            figures, last = event.figures, self._ended(event)
                            more = self._diffusion([event])
                            yield chunk(last, event.tokens, figures, diffusion=more)
            if self.body.include_usage:
                all_figures = [ends[choice].figures for choice in range(self.request.choices)]
                last_usage = usage(all_figures, self.request.n)
                yield json.dumps({**head, "choices": [], "usage": last_usage})
        except ApiError as error:
            yield json.dumps(error_body(error))
        yield "[DONE]"

    @staticmethod
    def _is_behind(http: Request) -> bool:
        """Returns whether a draft would make the client wait longer for the block behind it."""
        return unreceived_bytes(http.scope) > MOST_UNRECEIVED_BYTES

    def _diffusion(self, ends: list[Finished]) -> dict[str, Any]:
        """Returns the object `diffusion` of these choices, with their record if it is requested."""
        made = diffusion([end.figures for end in ends])
        if not self.body.recorded:
            return made
        fingerprint = self.head["system_fingerprint"]
        recorded = record(self.endpoint, fingerprint, self.body, self.prepared, ends)
        return {**made, "record": recorded}

    def _tokens(self, tokens: list[int]) -> dict[str, Any]:
        """Returns the field with a choice's token ids if the request asks for it."""
        return {"token_ids": tokens} if self.body.return_token_ids else {}

    def _prompt_head(self) -> dict[str, Any]:
        """Returns the fields about the prompt that a whole answer and its first chunks have."""
        return {}

    @abstractmethod
    def _whole(self, choice: Choice) -> dict[str, Any]:
        """Returns a choice of an answer that is not streamed."""

    @abstractmethod
    def _openings(self) -> Iterator[dict[str, Any]]:
        """Yields the choices' parts of the chunks that come before the first block."""

    @abstractmethod
    def _added(self, delta: Delta) -> dict[str, Any] | None:
        """Returns the choice's part of a chunk that adds an event, or None if it needs no chunk."""

    @abstractmethod
    def _nothing(self, choice: int) -> dict[str, Any]:
        """Returns the choice's part of a chunk that adds nothing to it."""

    @abstractmethod
    def _ended(self, end: Finished) -> dict[str, Any]:
        """Returns the choice's part of its last chunk."""
