"""The measurements of `easel bench cluster`, on one server without Ray."""

from bench import cluster
from bench.compare import silent


def test_later_turns_of_a_conversation_are_cached(demo_server, monkeypatch):
    monkeypatch.setattr(cluster, "CONVERSATIONS", 2)
    monkeypatch.setattr(cluster, "TURNS", 1)
    once = cluster._cached_share(demo_server.http, silent)
    monkeypatch.setattr(cluster, "TURNS", 3)
    assert once < cluster._cached_share(demo_server.http, silent) < 1


def test_the_overhead_is_what_the_second_server_takes_more(demo_server):
    row = cluster._overhead(demo_server.http, demo_server.http, 2, silent)
    assert row["whole_overhead_ms"] < row["whole_ms"]
    assert row["first_block_overhead_ms"] < row["first_block_ms"]
    assert row["health_ms"] > 0
