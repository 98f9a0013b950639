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


def match(cache, prompt):
    best = cache.longest(prompt)
    return None if best is None else (best.kept.name, best.length)


def test_the_longest_common_prefix_is_chosen():
    cache = cache_with(([1, 2, 3], Kept("a")), ([1, 2, 4, 5], Kept("b")))
    assert match(cache, [1, 2, 4, 9]) == ("b", 3)
    assert match(cache, [1, 2, 3, 4]) == ("a", 3)
    assert match(cache, [7]) is None


def test_a_prefix_is_not_cut_below_its_shortest_length():
    cache = cache_with(([1, 2, 3, 4, 5], Kept("a", shortest=4)))
    assert match(cache, [1, 2, 3, 9]) is None
    assert match(cache, [1, 2, 3, 4, 9]) == ("a", 4)


def test_the_least_recently_used_prefix_is_removed_when_the_budget_is_exceeded():
    cache = cache_with(*(([n], Kept(str(n))) for n in range(3)), budget=30)
    match(cache, [0, 5])
    assert cache.make_room([9], nbytes=10, shortest=0)
    cache.add([9], Kept("9"))
    assert [match(cache, [n]) for n in (0, 1, 2, 9)] == [("0", 1), None, ("2", 1), ("9", 1)]
    assert cache.nbytes == 30


def test_a_prefix_larger_than_the_budget_is_not_kept_and_removes_no_other():
    cache = cache_with(([1], Kept("a")), ([2], Kept("b", nbytes=101)))
    assert match(cache, [1]) == ("a", 1)
    assert len(cache) == 1


def test_a_budget_of_zero_keeps_nothing():
    assert len(cache_with(([1], Kept("a")), budget=0)) == 0


def test_a_prefix_that_can_already_be_restored_is_not_kept_again():
    cache = cache_with(([1, 2, 3], Kept("a")), ([1, 2], Kept("b")), ([1, 2, 3], Kept("c")))
    assert len(cache) == 1


def test_a_longer_prefix_replaces_a_shorter_one_that_it_can_be_cut_to():
    cache = cache_with(([1, 2], Kept("a")), ([1, 2, 3], Kept("b")))
    assert len(cache) == 1
    assert match(cache, [1, 2, 9]) == ("b", 2)


def test_a_shorter_prefix_stays_if_the_longer_one_cannot_be_cut_to_it():
    cache = cache_with(([1, 2], Kept("a")), ([1, 2, 3, 4], Kept("b", shortest=4)))
    assert match(cache, [1, 2, 9]) == ("a", 2)
    assert match(cache, [1, 2, 3, 4]) == ("b", 4)


def test_common_prefix_counts_equal_tokens_at_the_beginning():
    for length in range(8):
        other = list(range(8))
        other[length] = -1
        assert common_prefix(list(range(8)), other) == length
    assert common_prefix([1, 2], [1, 2, 3]) == 2
    assert common_prefix([], [1]) == 0
