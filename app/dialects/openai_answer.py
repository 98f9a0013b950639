"""The frame that the answers of chat and completions share, whole and chunk by chunk."""

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar

from fastapi import Response
from fastapi.responses import JSONResponse

from app.answer.figures import diffusion, usage
from app.answer.generation import Choice, Delta, Finished, answer_events, whole_answers
from app.answer.request import AnswerRequest
from app.errors import ApiError, error_body
from app.services import Services
from engine.messages import GenerateRequest


@dataclass(frozen=True)
class OpenAIAnswer(ABC):
    """One request and what its answer is made of. A dialect says how its choices look.

    The answer and every chunk of it begin with `head`.
    """

    object: ClassVar[str]
    chunk_object: ClassVar[str]

    services: Services
    request: AnswerRequest
    prepared: Sequence[GenerateRequest]
    head: dict[str, Any]
    include_usage: bool

    async def whole(self) -> Response:
        choices = await whole_answers(self.services, self.request, self.prepared)
        figures = [choice.end.figures for choice in choices]
        return JSONResponse(
            {
                **self.head,
                "object": self.object,
                "choices": [self._whole(choice) for choice in choices],
                "usage": usage(figures, self.request.n),
                "diffusion": diffusion(figures),
            }
        )

    async def chunks(self) -> AsyncGenerator[str, None]:
        head = {**self.head, "object": self.chunk_object}
        if self.include_usage:
            head["usage"] = None  # the specification says so for every chunk but the last

        def chunk(choice: dict[str, Any], **more: Any) -> str:
            return json.dumps({**head, "choices": [choice], **more}, ensure_ascii=False)

        for opening in self._openings():
            yield chunk(opening)
        ends: dict[int, Finished] = {}
        try:
            events = answer_events(self.services, self.request, self.prepared)
            async with aclosing(events):
                async for event in events:
                    match event:
                        case Delta():
                            added = self._added(event)
                            if added is not None:
                                yield chunk(added)
                        case Finished():
                            ends[event.choice] = event
                            yield chunk(self._ended(event), diffusion=diffusion([event.figures]))
            if self.include_usage:
                figures = [ends[choice].figures for choice in range(self.request.choices)]
                last_usage = usage(figures, self.request.n)
                yield json.dumps({**head, "choices": [], "usage": last_usage})
        except ApiError as error:
            yield json.dumps(error_body(error))
        yield "[DONE]"

    @abstractmethod
    def _whole(self, choice: Choice) -> dict[str, Any]:
        """Returns a choice of an answer that is not streamed."""

    @abstractmethod
    def _openings(self) -> Iterator[dict[str, Any]]:
        """Yields what a stream says of its choices before their first blocks."""

    @abstractmethod
    def _added(self, delta: Delta) -> dict[str, Any] | None:
        """Returns what a chunk says of the choice that a block added to, or None for no chunk."""

    @abstractmethod
    def _ended(self, end: Finished) -> dict[str, Any]:
        """Returns what the last chunk of a choice says of it."""
