"""More requests at the same moment than may be open."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.server.test_life import LONG, ended

MOST, COUNT = 2, 24


@pytest.mark.parametrize("stream", [True, False])
def test_who_is_not_taken_in_a_burst_is_told_by_a_status_and_not_counted(start_server, stream):
    server = start_server(EASEL_MAX_QUEUE=str(MOST)).wait_until_ready()
    body = {**LONG, "max_tokens": 60, "stream": stream}
    limits = httpx.Limits(max_connections=COUNT)

    with (
        httpx.Client(base_url=server.url, timeout=60, limits=limits) as http,
        ThreadPoolExecutor(COUNT) as pool,
    ):
        answers = list(
            pool.map(lambda _: http.post("/v1/chat/completions", json=body), range(COUNT * 4))
        )
        counted = ended(http)
    taken = [answer for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert not any("queue_full" in answer.text for answer in taken)
    assert sum(counted.values()) == len(taken)
