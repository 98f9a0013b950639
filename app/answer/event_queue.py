"""The events of a request's answers that their reader has not taken yet.

A slow reader gets every event, but of drafts only the newest: a draft waits until something newer
of its choice comes, and no event waits behind a draft.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from app.answer.frames import Frame

Event = TypeVar("Event")


class EventQueue(Generic[Event]):
    """A queue with one reader. It calls `dropped` for each draft that the reader does not get."""

    def __init__(self, dropped: Callable[[], None]) -> None:
        self._events: deque[Event] = deque()
        self._drafts: dict[int, Frame] = {}  # the newest one of each choice
        self._dropped = dropped
        self._filled = asyncio.Event()

    def put(self, event: Event, choice: int) -> None:
        """Add an event that must be read. It makes the draft of its choice outdated."""
        self._drop(choice)
        self._events.append(event)
        self._filled.set()

    def put_draft(self, draft: Frame) -> None:
        """Add a draft, which takes the place of an earlier one of its choice."""
        self._drop(draft.choice)
        self._drafts[draft.choice] = draft
        self._filled.set()

    async def get(self) -> Event | Frame:
        """Wait for something to read. Returns a draft only if there is no other event."""
        await self._filled.wait()
        event: Event | Frame
        if self._events:
            event = self._events.popleft()
        else:
            event = self._drafts.pop(next(iter(self._drafts)))
        if not (self._events or self._drafts):
            self._filled.clear()
        return event

    def _drop(self, choice: int) -> None:
        if self._drafts.pop(choice, None) is not None:
            self._dropped()
