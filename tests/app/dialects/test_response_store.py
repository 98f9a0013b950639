from app.dialects.responses.items import MessageItem
from app.dialects.responses.store import KeptResponse, ResponseStore, ResponseStores

ROOM = 2**20


def kept(name, text="hi", id=None):
    item = MessageItem(role="user", content=text).named(id or f"msg_{name}")
    return KeptResponse({"id": name}, [item], [])


def still_kept(store, names):
    """Returns the names that are kept. Uses the responses in this order."""
    return [name for name in names if store.get(name) is not None]


def test_too_many_responses_remove_the_least_recently_used_one():
    store = ResponseStore(2, ROOM)
    store.keep(kept("a"))
    store.keep(kept("b"))
    store.get("a")
    store.keep(kept("c"))
    assert still_kept(store, "abc") == ["a", "c"]


def test_too_many_bytes_remove_the_least_recently_used_responses():
    size = kept("a").size_bytes()
    store = ResponseStore(100, 2 * size)
    for name in "abc":
        store.keep(kept(name))
    assert still_kept(store, "abc") == ["b", "c"]
    store.keep(kept("d", "x" * (size // 2)))
    assert still_kept(store, "bcd") == ["d"]


def test_a_response_larger_than_the_store_is_not_kept_and_removes_no_other():
    store = ResponseStore(100, 1000)
    store.keep(kept("a"))
    store.keep(kept("b", "x" * 1000))
    assert still_kept(store, "ab") == ["a"]


def test_deleting_a_response_removes_its_items_and_frees_its_bytes():
    size = kept("a").size_bytes()
    store = ResponseStore(100, size)
    store.keep(kept("a"))
    assert store.delete("a")
    assert not store.delete("a")
    assert store.item("msg_a") is None
    store.keep(kept("b"))
    assert still_kept(store, "ab") == ["b"]


def test_an_item_is_read_from_the_response_that_has_it_which_counts_as_a_use():
    store = ResponseStore(2, ROOM)
    store.keep(kept("a", "first"))
    store.keep(kept("b"))
    assert store.item("msg_a").content == "first"
    store.keep(kept("c"))
    assert still_kept(store, "abc") == ["a", "c"]


def test_the_size_includes_the_response_and_the_whole_conversation():
    one = kept("a")
    (item,) = one.read
    both = KeptResponse({"id": "a"}, [item], [item])
    assert both.size_bytes() - one.size_bytes() == len(item.model_dump_json())
    assert one.size_bytes() - len(item.model_dump_json()) == len('{"id":"a"}')
    assert kept("a", "é").size_bytes() == kept("a", "e").size_bytes() + 1


def test_stores_of_other_keys_have_other_responses_and_items():
    stores = ResponseStores(9, ROOM)
    stores.of("ann").keep(kept("a"))
    other = stores.of("ben")
    assert other.get("a") is other.item("msg_a") is None
    assert not other.delete("a")
    assert still_kept(stores.of("ann"), "a") == ["a"]


def test_the_key_that_holds_the_most_responses_loses_its_least_recently_used_one():
    stores = ResponseStores(4, ROOM)
    for name in "abc":
        stores.of("ann").keep(kept(name))
    for name in "xyz":
        stores.of("ben").keep(kept(name))
    assert still_kept(stores.of("ann"), "abc") == ["b", "c"]
    assert still_kept(stores.of("ben"), "xyz") == ["y", "z"]


def test_the_key_that_holds_the_most_bytes_loses_its_least_recently_used_response():
    size = kept("a").size_bytes()
    stores = ResponseStores(100, 4 * size)
    stores.of("ann").keep(kept("a"))
    for name in "wxyz":
        stores.of("ben").keep(kept(name))
    assert still_kept(stores.of("ann"), "a") == ["a"]
    assert still_kept(stores.of("ben"), "wxyz") == ["x", "y", "z"]
    stores.of("ann").keep(kept("b", "x" * (3 * size)))  # too large beside what others hold
    assert still_kept(stores.of("ben"), "xyz") == ["x", "y", "z"]


def test_an_item_is_not_found_by_an_id_that_a_client_chose():
    store = ResponseStore(2, ROOM)
    store.keep(kept("a", "made here"))
    chosen = MessageItem(id="msg_a", role="user", content="forged")
    unknown = MessageItem(id="msg_1", role="user", content="forged")
    store.keep(KeptResponse({"id": "b"}, [unknown, chosen], []))
    assert store.item("msg_1") is None
    assert store.item("msg_a").content == "made here"


def test_an_item_is_found_as_long_as_one_of_its_responses_is_kept():
    store = ResponseStore(9, ROOM)
    first = kept("a")
    store.keep(first)
    store.keep(KeptResponse({"id": "b"}, first.conversation, []))
    store.delete("a")
    assert store.item("msg_a") is first.read[0]
    store.delete("b")
    assert store.item("msg_a") is None
