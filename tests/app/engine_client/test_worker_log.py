"""The worker's stderr becomes records of the front end's log."""

import asyncio
import logging

import pytest

from app.engine_client.worker_log import relay

LOGGED = "2026-01-01 10:00:00,000 ERROR engine.denoise.graphs: it failed\n"


async def records(caplog, *chunks):
    """Returns what is logged when these chunks arrive one by one and stderr is then closed."""
    reader = asyncio.StreamReader()
    relaying = asyncio.create_task(relay(reader))
    with caplog.at_level(logging.DEBUG):
        for chunk in chunks:
            reader.feed_data(chunk)
            await asyncio.sleep(0)  # until the reader waits again
            await asyncio.sleep(0)
        reader.feed_eof()
        await relaying
    return [(r.levelname, r.name, r.getMessage()) for r in caplog.records if r.name != "asyncio"]


async def test_a_logged_line_keeps_its_level_and_logger(caplog):
    assert await records(caplog, LOGGED.encode()) == [
        ("ERROR", "engine.denoise.graphs", "it failed")
    ]


async def test_a_traceback_belongs_to_the_line_before_it(caplog):
    text = f"{LOGGED}Traceback:\n  why\n{LOGGED}"
    assert await records(caplog, text.encode()) == [
        ("ERROR", "engine.denoise.graphs", "it failed\nTraceback:\n  why"),
        ("ERROR", "engine.denoise.graphs", "it failed"),
    ]


async def test_a_line_that_is_only_printed_is_a_warning(caplog):
    assert await records(caplog, b"easel worker: no weights\n") == [
        ("WARNING", "engine", "easel worker: no weights")
    ]


async def test_the_last_critical_line_is_the_reason_why_the_worker_ends():
    reader = asyncio.StreamReader()
    critical = LOGGED.replace("ERROR", "CRITICAL").replace("failed", "cannot start")
    reader.feed_data(f"{LOGGED}{critical}Traceback:\n  why\n{LOGGED}a last word\n".encode())
    reader.feed_eof()
    assert await relay(reader) == "it cannot start"


async def test_a_worker_that_logs_nothing_critical_gives_no_reason():
    reader = asyncio.StreamReader()
    reader.feed_data(f"{LOGGED}a last word".encode())
    reader.feed_eof()
    assert await relay(reader) is None


@pytest.mark.parametrize("cut", range(1, len(LOGGED)))
async def test_a_line_that_comes_in_two_parts_is_one_record(caplog, cut):
    parts = (LOGGED[:cut].encode(), LOGGED[cut:].encode())
    assert await records(caplog, *parts) == [("ERROR", "engine.denoise.graphs", "it failed")]


async def test_a_last_line_without_an_end_is_not_lost(caplog):
    assert await records(caplog, b"Fatal Python error") == [
        ("WARNING", "engine", "Fatal Python error")
    ]
