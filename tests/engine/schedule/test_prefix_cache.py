from dataclasses import dataclass

from engine.schedule.prefix_cache import PrefixCache, common_prefix


@dataclass(frozen=True)
class Kept:
    name: str
    nbytes: int = 10
    shortest: int = 0


def cache_with(*entries, budget=100):
    cache = PrefixCache(budget)
    for tokens, kept in entries:
        if cache.make_room(tokens, nbytes=kept.nbytes, shortest=kept.shortest):
            cache.add(tokens, kept)
    return cache


def found(cache, prompt):
    match = cache.longest(prompt)
    return None if match is None else (match.kept.name, match.length)


def test_the_longest_common_prefix_wins():
    cache = cache_with(([1, 2, 3], Kept("a")), ([1, 2, 4, 5], Kept("b")))
    assert found(cache, [1, 2, 4, 9]) == ("b", 3)
    assert found(cache, [1, 2, 3, 4]) == ("a", 3)
    assert found(cache, [7]) is None


def test_a_prefix_is_not_cut_shorter_than_it_can_be():
    cache = cache_with(([1, 2, 3, 4, 5], Kept("a", shortest=4)))
    assert found(cache, [1, 2, 3, 9]) is None
    assert found(cache, [1, 2, 3, 4, 9]) == ("a", 4)


def test_the_least_recently_used_goes_when_the_budget_is_spent():
    cache = cache_with(*(([n], Kept(str(n))) for n in range(3)), budget=30)
    found(cache, [0, 5])
    assert cache.make_room([9], nbytes=10, shortest=0)
    cache.add([9], Kept("9"))
    assert [found(cache, [n]) for n in (0, 1, 2, 9)] == [("0", 1), None, ("2", 1), ("9", 1)]
    assert cache.nbytes == 30


def test_what_is_larger_than_the_budget_is_not_kept_and_drives_nobody_out():
    cache = cache_with(([1], Kept("a")), ([2], Kept("b", nbytes=101)))
    assert found(cache, [1]) == ("a", 1)
    assert len(cache) == 1


def test_a_budget_of_nothing_keeps_nothing():
    assert len(cache_with(([1], Kept("a")), budget=0)) == 0


def test_what_can_be_restored_already_is_not_kept_twice():
    cache = cache_with(([1, 2, 3], Kept("a")), ([1, 2], Kept("b")), ([1, 2, 3], Kept("c")))
    assert len(cache) == 1


def test_a_longer_prefix_replaces_a_shorter_one_that_it_can_be_cut_to():
    cache = cache_with(([1, 2], Kept("a")), ([1, 2, 3], Kept("b")))
    assert len(cache) == 1
    assert found(cache, [1, 2, 9]) == ("b", 2)


def test_a_shorter_prefix_stays_if_the_longer_one_cannot_be_cut_to_it():
    cache = cache_with(([1, 2], Kept("a")), ([1, 2, 3, 4], Kept("b", shortest=4)))
    assert found(cache, [1, 2, 9]) == ("a", 2)
    assert found(cache, [1, 2, 3, 4]) == ("b", 4)


def test_common_prefix_counts_equal_tokens_at_the_beginning():
    for at in range(8):
        other = list(range(8))
        other[at] = -1
        assert common_prefix(list(range(8)), other) == at
    assert common_prefix([1, 2], [1, 2, 3]) == 2
    assert common_prefix([], [1]) == 0
