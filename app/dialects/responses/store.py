"""Responses that are kept in memory, for `previous_response_id`, item references and `GET`.

The store is bounded by number and by bytes. The least recently used response is deleted first. A
response holds its whole conversation, so it can be continued even if earlier ones are deleted.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import Request

from app.dialects.responses.items import InputItem


@dataclass(frozen=True)
class KeptResponse:
    """A response. `read` is the conversation before the answer, `answer` are its own items."""

    response: dict[str, Any]
    read: Sequence[InputItem]
    answer: Sequence[InputItem]

    @property
    def conversation(self) -> list[InputItem]:
        return [*self.read, *self.answer]

    def size_bytes(self) -> int:
        """Returns the size as JSON. The memory is less, because responses share their items."""
        items = sum(len(item.model_dump_json().encode()) for item in self.conversation)
        return items + len(msgspec.json.encode(self.response))


class ResponseStore:
    """The kept responses, by their ids."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        # By id, with their sizes; the least recently used response is the first.
        self._kept: OrderedDict[str, tuple[KeptResponse, int]] = OrderedDict()
        self._bytes = 0

    def keep(self, response: KeptResponse) -> None:
        """Keep a response. One that is larger than the whole store is not kept."""
        size = response.size_bytes()
        if size > self._most_bytes:
            return
        self._kept[response.response["id"]] = response, size
        self._bytes += size
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            self.delete(next(iter(self._kept)))

    def get(self, id: str) -> KeptResponse | None:
        """Returns the response, or None. This counts as a use of it."""
        if id not in self._kept:
            return None
        self._kept.move_to_end(id)
        return self._kept[id][0]

    def delete(self, id: str) -> bool:
        """Delete the response. Returns whether it was kept."""
        removed = self._kept.pop(id, None)
        self._bytes -= 0 if removed is None else removed[1]
        return removed is not None

    def item(self, id: str) -> InputItem | None:
        """Returns an item of a kept response, or None. This counts as a use of the response."""
        for name, (kept, _) in reversed(self._kept.items()):
            for item in kept.conversation:
                if item.id == id:
                    self._kept.move_to_end(name)
                    return item
        return None


def response_store(request: Request) -> ResponseStore:
    """Returns the store of the app that the request came to."""
    store: ResponseStore = request.app.state.responses
    return store
