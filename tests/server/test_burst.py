"""Many more requests arrive at the same moment than may be open."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.server.test_life import LONG

COUNT = 24


@pytest.mark.parametrize("stream", [True, False])
def test_requests_refused_in_a_burst_get_a_status_and_are_not_counted(limited_server, stream):
    limited_server.wait_until_idle()
    before = limited_server.ended().total()
    body = {**LONG, "max_tokens": 60, "stream": stream}
    limits = httpx.Limits(max_connections=COUNT)

    with (
        httpx.Client(base_url=limited_server.url, timeout=60, limits=limits) as http,
        ThreadPoolExecutor(COUNT) as pool,
    ):
        answers = list(
            pool.map(lambda _: http.post("/v1/chat/completions", json=body), range(COUNT * 4))
        )
    accepted = [answer for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert not any("queue_full" in answer.text for answer in accepted)
    assert limited_server.ended().total() - before == len(accepted)
