from app.dialects.responses.items import MessageItem
from app.dialects.responses.store import KeptResponse, ResponseStore

ROOM = 2**20


def kept(name, text="hi", id=None):
    item = MessageItem(id=id or f"msg_{name}", role="user", content=text)
    return KeptResponse({"id": name}, [item], [])


def there(store, names):
    """Which are kept, asked for in their order."""
    return [name for name in names if store.get(name) is not None]


def test_of_too_many_the_least_recently_used_goes():
    store = ResponseStore(2, ROOM)
    store.keep(kept("a"))
    store.keep(kept("b"))
    store.get("a")
    store.keep(kept("c"))
    assert there(store, "abc") == ["a", "c"]


def test_of_too_much_the_least_recently_used_go():
    size = kept("a").size_bytes()
    store = ResponseStore(100, 2 * size)
    for name in "abc":
        store.keep(kept(name))
    assert there(store, "abc") == ["b", "c"]
    store.keep(kept("d", "x" * (size // 2)))
    assert there(store, "bcd") == ["d"]


def test_what_is_larger_than_all_the_room_is_not_kept_and_evicts_nothing():
    store = ResponseStore(100, 1000)
    store.keep(kept("a"))
    store.keep(kept("b", "x" * 1000))
    assert there(store, "ab") == ["a"]


def test_a_deleted_response_is_gone_with_its_items_and_gives_its_room_back():
    size = kept("a").size_bytes()
    store = ResponseStore(100, size)
    store.keep(kept("a"))
    assert store.delete("a")
    assert not store.delete("a")
    assert store.item("msg_a") is None
    store.keep(kept("b"))
    assert there(store, "ab") == ["b"]


def test_an_item_is_found_in_whichever_response_has_it_and_keeps_that_in_use():
    store = ResponseStore(2, ROOM)
    store.keep(kept("a", "first"))
    store.keep(kept("b"))
    assert store.item("msg_a").content == "first"
    store.keep(kept("c"))
    assert there(store, "abc") == ["a", "c"]


def test_a_size_counts_the_response_and_the_whole_conversation():
    one = kept("a")
    (item,) = one.read
    both = KeptResponse({"id": "a"}, [item], [item])
    assert both.size_bytes() - one.size_bytes() == len(item.model_dump_json())
    assert one.size_bytes() - len(item.model_dump_json()) == len('{"id":"a"}')
    assert kept("a", "é").size_bytes() == kept("a", "e").size_bytes() + 1
