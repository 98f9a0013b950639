"""The queue between an answer and its reader."""

import asyncio

import pytest

from app.answer.event_queue import EventQueue
from app.answer.figures import Figures
from app.answer.frames import Frame


def draft(step, choice=0):
    return Frame(choice, Figures(1), b"", 0, step, [], [], 0.0)


class Queue(EventQueue[str]):
    """Counts the drafts that its reader does not get."""

    def __init__(self):
        super().__init__(self._count)
        self.dropped = 0

    def _count(self):
        self.dropped += 1


async def rest(queue):
    """Returns everything that can be read without waiting."""
    read = []
    while True:
        try:
            async with asyncio.timeout(0.01):
                read.append(await queue.get())
        except TimeoutError:
            return read


async def test_a_reader_that_keeps_up_gets_everything_in_order():
    queue, read = Queue(), []
    for step in range(3):
        queue.put_draft(draft(step))
        read.append(await queue.get())
        queue.put(f"block {step}", 0)
        read.append(await queue.get())
    assert read == [draft(0), "block 0", draft(1), "block 1", draft(2), "block 2"]
    assert queue.dropped == 0


async def test_a_slow_reader_gets_all_content_and_only_the_newest_draft():
    queue = Queue()
    for block in range(3):
        for step in range(5):
            queue.put_draft(draft(step))
        queue.put(f"block {block}", 0)
    queue.put_draft(draft(8))
    queue.put_draft(draft(9))
    assert await rest(queue) == ["block 0", "block 1", "block 2", draft(9)]
    assert queue.dropped == 3 * 5 + 1


async def test_a_draft_is_outdated_by_events_of_its_own_choice_only():
    queue = Queue()
    queue.put_draft(draft(1, choice=0))
    queue.put_draft(draft(1, choice=1))
    queue.put("block", 0)
    assert await rest(queue) == ["block", draft(1, choice=1)]
    assert queue.dropped == 1


@pytest.mark.parametrize("put", [lambda q: q.put("x", 0), lambda q: q.put_draft(draft(1))])
async def test_a_reader_waits_for_the_next_event(put):
    queue = Queue()
    reading = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not reading.done()
    put(queue)
    assert await reading in ("x", draft(1))
