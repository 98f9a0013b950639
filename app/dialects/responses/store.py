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

    def size_bytes(self, most: int) -> int:
        """Returns the size as JSON. The memory is less, because responses share their items.

        Counting ends when the size is larger than `most`.
        """
        size = len(msgspec.json.encode(self.response))
        for item in self.conversation:
            if size > most:
                break
            size += len(item.model_dump_json().encode())
        return size


class ResponseStore:
    """The kept responses, by their ids."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self.most_bytes = most_bytes
        # By id, with their sizes; the least recently used response is the first.
        self._kept: OrderedDict[str, tuple[KeptResponse, int]] = OrderedDict()
        self._bytes = 0
        # The items by id, each with the responses that have it by name. The newest is the last.
        self._items: dict[str, dict[str, InputItem]] = {}

    def keep(self, response: KeptResponse, size: int) -> None:
        """Keep a response of `size` bytes. One that is larger than the whole store is not kept."""
        if size > self.most_bytes:
            return
        name = response.response["id"]
        self._kept[name] = response, size
        self._bytes += size
        for item in response.conversation:
            if item.id is not None:
                self._items.setdefault(item.id, {}).setdefault(name, item)
        while len(self._kept) > self._most or self._bytes > self.most_bytes:
            self.delete(next(iter(self._kept)))

    def get(self, id: str) -> KeptResponse | None:
        """Returns the response, or None. This counts as a use of it."""
        if id not in self._kept:
            return None
        self._kept.move_to_end(id)
        return self._kept[id][0]

    def delete(self, id: str) -> bool:
        """Delete the response. Returns whether it was kept."""
        if id not in self._kept:
            return False
        response, size = self._kept.pop(id)
        self._bytes -= size
        for item in response.conversation:
            if item.id is not None and (holders := self._items.get(item.id)) is not None:
                holders.pop(id, None)
                if not holders:
                    del self._items[item.id]
        return True

    def item(self, id: str) -> InputItem | None:
        """Returns an item, or None. This counts as a use of the newest response that has it."""
        holders = self._items.get(id)
        if holders is None:
            return None
        name = next(reversed(holders))
        self._kept.move_to_end(name)
        return holders[name]


def response_store(request: Request) -> ResponseStore:
    """Returns the store of the app that the request came to."""
    store: ResponseStore = request.app.state.responses
    return store
