import pytest

from app.engine_client.places import Places


def test_each_open_or_reserved_answer_has_a_place():
    places = Places(4)
    assert places.reserve(2, 0, opened=[0]) is None
    assert places.reserve(2, 0, opened=[0]) == (3, 4, 1)
    places.release(1, 0)
    assert places.reserve(2, 0, opened=[0]) is None


@pytest.mark.parametrize(("most", "limits"), [(64, [64, 48]), (16, [16, 12]), (3, [3, 2])])
def test_without_keys_some_places_are_kept_from_requests_with_a_worse_priority(most, limits):
    places = Places(most)
    assert [places.limit(priority) for priority in (-5, 0)] == [most, most]
    assert [places.limit(priority) for priority in (0, 10)] == limits
    assert places.limit(1) == places.limit(2**31 - 1)


def test_the_last_place_cannot_be_kept():
    assert Places(1).limit(10) == 1


def test_each_better_priority_of_a_key_has_places_that_worse_ones_cannot_take():
    priorities = [10, -5, 0, 10]
    places = Places(64, priorities)
    assert [places.limit(priority) for priority in (-5, 0, 10, 11)] == [64, 48, 36, 27]
    for worse, better in ((11, 10), (10, 0), (0, -5)):
        assert places.reserve(1, better, opened=[worse] * places.limit(worse)) is None
        assert places.reserve(1, worse, opened=[worse] * places.limit(worse)) is not None


def test_a_worse_priority_gets_what_better_ones_leave():
    places = Places(8, [0, 10])
    assert places.reserve(6, 10, opened=[0, 0]) is None
    assert places.reserve(1, 10, opened=[0, 0]) == (8, 8, 1)
    places.release(6, 10)
    assert places.reserve(1, 10, opened=[0] * 8) == (8, 8, 1)


def test_equal_priorities_share_all_places():
    places = Places(8, [0, 0])
    assert places.reserve(8, 0, opened=[]) is None
