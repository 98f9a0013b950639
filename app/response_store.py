"""Responses kept in memory, for `previous_response_id`, references and reading again.

Bounded by number and by bytes; the least recently used goes first. Each holds its whole
conversation, so that one can go on from it whatever became of the responses before.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from app.schemas.response_items import InputItem


@dataclass(frozen=True)
class KeptResponse:
    """`read` is the conversation up to the answer, `said` the answer's own items."""

    response: dict[str, Any]
    read: Sequence[InputItem]
    said: Sequence[InputItem]

    @property
    def conversation(self) -> list[InputItem]:
        return [*self.read, *self.said]

    def size_bytes(self) -> int:
        """As JSON: an item is counted in every response that holds it, so memory is less."""
        items = sum(len(item.model_dump_json().encode()) for item in self.conversation)
        return items + len(msgspec.json.encode(self.response))


class ResponseStore:
    """What was kept, by the response's id."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, tuple[KeptResponse, int]] = OrderedDict()  # oldest use first
        self._bytes = 0

    def keep(self, response: KeptResponse) -> None:
        """One that is larger than all the room is not kept, so that it costs no other its place."""
        size = response.size_bytes()
        if size > self._most_bytes:
            return
        self._kept[response.response["id"]] = response, size
        self._bytes += size
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            self.delete(next(iter(self._kept)))

    def get(self, id: str) -> KeptResponse | None:
        """It has been used with this."""
        if id not in self._kept:
            return None
        self._kept.move_to_end(id)
        return self._kept[id][0]

    def delete(self, id: str) -> bool:
        """Whether it was there."""
        found = self._kept.pop(id, None)
        self._bytes -= 0 if found is None else found[1]
        return found is not None

    def item(self, id: str) -> InputItem | None:
        """An item of a kept response, which has been used with this."""
        for name, (kept, _) in reversed(self._kept.items()):
            for item in kept.conversation:
                if item.id == id:
                    self._kept.move_to_end(name)
                    return item
        return None
