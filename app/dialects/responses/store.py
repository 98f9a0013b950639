"""Responses that are kept in memory, for `previous_response_id`, item references and `GET`.

Each API key has a store of its own, so no request finds what was kept with another key. All stores
together are bounded by number and by bytes. When a bound is exceeded, the store that holds the most
deletes its least recently used response. So a key that holds no more than an equal share loses
nothing because of other keys.

A response holds its whole conversation, so it can be continued even if earlier ones are deleted.
Items are found by ids that this server made. A client may give its items any id, also that of
another item, so those are not looked up.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
from fastapi import Request

from app.dialects.items import InputItem
from app.security import client_of


@dataclass(frozen=True)
class KeptResponse:
    """A response. `read` is the conversation before the answer, `answer` are its own items."""

    response: dict[str, Any]
    read: Sequence[InputItem]
    answer: Sequence[InputItem]

    @property
    def conversation(self) -> list[InputItem]:
        return [*self.read, *self.answer]

    @cached_property
    def named_items(self) -> dict[str, InputItem]:
        """Returns the items of the conversation that this server named, by their ids."""
        return {item.id: item for item in self.conversation if item.id and item.named_here}

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
    """The kept responses of one API key, by their ids."""

    def __init__(
        self, most: int, most_bytes: int, sharing: "Collection[ResponseStore]" = ()
    ) -> None:
        """The bounds are those of all stores in `sharing` together, to which this one is added."""
        self._most = most
        self.most_bytes = most_bytes
        self._sharing = sharing
        # By id, with their sizes; the least recently used response is the first.
        self._kept: OrderedDict[str, tuple[KeptResponse, int]] = OrderedDict()
        self._bytes = 0
        self._holders: dict[str, dict[str, None]] = {}  # ids of responses by those of their items

    def keep(self, response: KeptResponse, size: int) -> None:
        """Keep a response of `size` bytes, unless it is larger than all stores may be."""
        if size > self.most_bytes:
            return
        name = response.response["id"]
        self._kept[name] = response, size
        self._bytes += size
        for item in response.named_items:
            self._holders.setdefault(item, {})[name] = None
        stores = [self, *(store for store in self._sharing if store is not self)]
        # If several stores hold equally much, this one is the first of them.
        while sum(len(store._kept) for store in stores) > self._most:
            max(stores, key=lambda store: len(store._kept))._delete_oldest()
        while sum(store._bytes for store in stores) > self.most_bytes:
            max(stores, key=lambda store: store._bytes)._delete_oldest()

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
        for item in response.named_items:
            del self._holders[item][id]
            if not self._holders[item]:
                del self._holders[item]
        return True

    def item(self, id: str) -> InputItem | None:
        """Returns an item of a kept response, or None. This counts as a use of the response.

        An id that a client chose is not found.
        """
        if id not in self._holders:
            return None
        name = next(reversed(self._holders[id]))
        self._kept.move_to_end(name)
        return self._kept[name][0].named_items[id]

    def holds(self, id: str) -> bool:
        """Returns whether `get` or `item` would find the id. This counts as no use of it."""
        return id in self._kept or id in self._holders

    def _delete_oldest(self) -> None:
        self.delete(next(iter(self._kept)))


class ResponseStores:
    """The stores of all API keys."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self.most_bytes = most_bytes
        self._stores: dict[str, ResponseStore] = {}

    def of(self, client_id: str) -> ResponseStore:
        if client_id not in self._stores:
            self._stores[client_id] = ResponseStore(
                self._most, self.most_bytes, self._stores.values()
            )
        return self._stores[client_id]

    def holds(self, id: str) -> bool:
        """Returns whether the store of any key has a response or an item with this id."""
        return any(store.holds(id) for store in self._stores.values())


def response_store(request: Request) -> ResponseStore:
    """Returns the store of the API key that the request was sent with."""
    stores: ResponseStores = request.app.state.responses
    return stores.of(client_of(request).id)
