from app.dialects.items import MessageItem
from app.dialects.responses.store import KeptResponse, ResponseStore, ResponseStores

ROOM = 2**20


def kept(name, text="hi", id=None):
    item = MessageItem(role="user", content=text).named(id or f"msg_{name}")
    return KeptResponse({"id": name}, [item], [])


def keep(store, response):
    store.keep(response, response.size_bytes(store.most_bytes))


def still_kept(store, names):
    """Returns the names that are kept. Uses the responses in this order."""
    return [name for name in names if store.get(name) is not None]


def test_too_many_responses_remove_the_least_recently_used_one():
    store = ResponseStore(2, ROOM)
    keep(store, kept("a"))
    keep(store, kept("b"))
    store.get("a")
    keep(store, kept("c"))
    assert still_kept(store, "abc") == ["a", "c"]


def test_too_many_bytes_remove_the_least_recently_used_responses():
    size = kept("a").size_bytes(ROOM)
    store = ResponseStore(100, 2 * size)
    for name in "abc":
        keep(store, kept(name))
    assert still_kept(store, "abc") == ["b", "c"]
    keep(store, kept("d", "x" * (size // 2)))
    assert still_kept(store, "bcd") == ["d"]


def test_a_response_larger_than_the_store_is_not_kept_and_removes_no_other():
    store = ResponseStore(100, 1000)
    keep(store, kept("a"))
    keep(store, kept("b", "x" * 1000))
    assert still_kept(store, "ab") == ["a"]


def test_deleting_a_response_removes_its_items_and_frees_its_bytes():
    size = kept("a").size_bytes(ROOM)
    store = ResponseStore(100, size)
    keep(store, kept("a"))
    assert store.delete("a")
    assert not store.delete("a")
    assert store.item("msg_a") is None
    keep(store, kept("b"))
    assert still_kept(store, "ab") == ["b"]


def test_an_item_is_read_from_the_response_that_has_it_which_counts_as_a_use():
    store = ResponseStore(2, ROOM)
    keep(store, kept("a", "first"))
    keep(store, kept("b"))
    assert store.item("msg_a").content == "first"
    keep(store, kept("c"))
    assert still_kept(store, "abc") == ["a", "c"]


def test_the_size_includes_the_response_and_the_whole_conversation():
    one = kept("a")
    (item,) = one.read
    both = KeptResponse({"id": "a"}, [item], [item])
    assert both.size_bytes(ROOM) - one.size_bytes(ROOM) == len(item.model_dump_json())
    assert one.size_bytes(ROOM) - len(item.model_dump_json()) == len('{"id":"a"}')
    assert kept("a", "é").size_bytes(ROOM) == kept("a", "e").size_bytes(ROOM) + 1


def test_stores_of_other_keys_have_other_responses_and_items():
    stores = ResponseStores(9, ROOM)
    keep(stores.of("ann"), kept("a"))
    other = stores.of("ben")
    assert other.get("a") is other.item("msg_a") is None
    assert not other.delete("a")
    assert still_kept(stores.of("ann"), "a") == ["a"]


def test_a_response_and_its_items_are_held_whatever_key_they_belong_to_without_a_use():
    stores = ResponseStores(2, ROOM)
    keep(stores.of("x"), kept("a"))
    keep(stores.of("x"), kept("b"))
    assert all(stores.holds(id) for id in ("b", "msg_b", "msg_a", "a"))
    assert not stores.holds("c")
    keep(stores.of("x"), kept("c"))
    assert not stores.holds("a")
    assert not stores.holds("msg_a")


def test_the_key_that_holds_the_most_responses_loses_its_least_recently_used_one():
    stores = ResponseStores(4, ROOM)
    for name in "abc":
        keep(stores.of("ann"), kept(name))
    for name in "xyz":
        keep(stores.of("ben"), kept(name))
    assert still_kept(stores.of("ann"), "abc") == ["b", "c"]
    assert still_kept(stores.of("ben"), "xyz") == ["y", "z"]


def test_the_key_that_holds_the_most_bytes_loses_its_least_recently_used_response():
    size = kept("a").size_bytes(ROOM)
    stores = ResponseStores(100, 4 * size)
    keep(stores.of("ann"), kept("a"))
    for name in "wxyz":
        keep(stores.of("ben"), kept(name))
    assert still_kept(stores.of("ann"), "a") == ["a"]
    assert still_kept(stores.of("ben"), "wxyz") == ["x", "y", "z"]
    keep(stores.of("ann"), kept("b", "x" * (3 * size)))  # too large beside what others hold
    assert still_kept(stores.of("ben"), "xyz") == ["x", "y", "z"]


def test_an_item_is_not_found_by_an_id_that_a_client_chose():
    store = ResponseStore(2, ROOM)
    keep(store, kept("a", "made here"))
    chosen = MessageItem(id="msg_a", role="user", content="forged")
    unknown = MessageItem(id="msg_1", role="user", content="forged")
    keep(store, KeptResponse({"id": "b"}, [unknown, chosen], []))
    assert store.item("msg_1") is None
    assert store.item("msg_a").content == "made here"


def test_an_item_of_several_responses_is_found_until_the_last_of_them_is_deleted():
    store = ResponseStore(10, ROOM)
    shared = kept("a").read
    for name in "abc":
        keep(store, KeptResponse({"id": name}, [*shared, *shared], []))
    for name in "cab":
        assert store.item("msg_a") is shared[0]
        store.delete(name)
    assert store.item("msg_a") is None


def test_counting_the_size_ends_when_it_is_too_large():
    class Item:
        def model_dump_json(self):
            return next(dumped)

    dumped = iter(["x" * 600] * 2)
    assert KeptResponse({"id": "a"}, [Item()] * 1000, []).size_bytes(1000) > 1000
