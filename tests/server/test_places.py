"""Places in the queue: for a person beside an agent, and for others beside a reader that stops."""

import contextlib

import httpx
import pytest

from tests.polling import wait_until
from tests.server.test_errors import check_retry_header
from tests.server.test_gone import LARGE, idle_tasks, read_until, sent
from tests.server.test_life import LONG

PLACES = 16
ALLOWED = 12  # of a worse priority
PATHS = {
    "/v1/chat/completions": LONG,
    "/v1/completions": {"prompt": "Count", "max_tokens": 50},
    "/v1/responses": {"input": "Count", "max_output_tokens": 50},
    "/v1/messages": LONG,
}


@pytest.fixture(scope="module")
def keyed(shared_server):
    return shared_server(
        EASEL_API_KEY="person, agents priority=10, jobs priority=20", EASEL_MAX_QUEUE=str(PLACES)
    )


@pytest.fixture(scope="module")
def keyless(shared_server):
    return shared_server(EASEL_MAX_QUEUE=str(PLACES))


@contextlib.contextmanager
def streams(server):
    """Yields a function that opens a stream and leaves it open. It returns the response.

    The worker stands still meanwhile, so no answer ends.
    """
    server.wait_until_idle()
    with (
        httpx.Client(base_url=server.url, timeout=60) as http,
        contextlib.ExitStack() as stack,
        server.stopped_worker(),
    ):

        def open_stream(key=None, path="/v1/chat/completions", **fields):
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            body = {**PATHS[path], **fields, "stream": True}
            response = stack.enter_context(http.stream("POST", path, json=body, headers=headers))
            if response.status_code != 200:
                response.read()
            return response

        yield open_stream


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_an_agent_with_all_of_its_places_keeps_no_person_out(keyed, path, whole):
    with streams(keyed) as open_stream:
        if whole:
            assert open_stream("agents", n=ALLOWED).status_code == 200
        else:
            for _ in range(ALLOWED):
                assert open_stream("agents").status_code == 200
        refused = open_stream("agents", path)
        assert refused.status_code == 429
        check_retry_header(refused)
        for _ in range(PLACES - ALLOWED):
            assert open_stream("person", path).status_code == 200
        assert open_stream("person", path).status_code == 429


def test_each_priority_has_places_that_worse_ones_cannot_take(keyed):
    with streams(keyed) as open_stream:
        for key, admitted in (("jobs", 9), ("agents", 3), ("person", 4)):
            statuses = [open_stream(key).status_code for _ in range(admitted + 1)]
            assert statuses == [200] * admitted + [429]


def test_more_answers_than_a_priority_can_ever_have_are_a_bad_request(keyed):
    with streams(keyed) as open_stream:
        refused = open_stream("agents", n=ALLOWED + 1)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "n"
        assert f"at most {ALLOWED}" in refused.json()["error"]["message"]
        assert open_stream("person", n=PLACES).status_code == 200


def test_the_priority_of_a_request_without_keys_counts_in_the_same_way(keyless):
    with streams(keyless) as open_stream:
        assert open_stream(priority=1, n=ALLOWED).status_code == 200
        assert open_stream(priority=7).status_code == 429
        assert open_stream(n=PLACES - ALLOWED).status_code == 200


def test_a_place_is_free_again_after_a_refused_prompt(keyless):
    keyless.wait_until_idle()
    long = [{"role": "user", "content": "x y " * 3000}]
    for _ in range(PLACES + 1):
        body = {**LONG, "messages": long, "n": PLACES}
        assert keyless.http.post("/v1/chat/completions", json=body).status_code == 400
    body = {**LONG, "max_tokens": 1, "n": PLACES}
    assert keyless.http.post("/v1/chat/completions", json=body).status_code == 200


def test_a_reader_that_stands_still_gives_its_places_back_when_the_worker_has_ended(keyless):
    tasks, before = idle_tasks(keyless), keyless.ended().total()
    with contextlib.closing(sent(keyless, {**LARGE, "n": PLACES}, receive_bytes=4096)) as reader:
        wait_until(lambda: keyless.ended().total() == before + PLACES)
        assert keyless.event_loop_tasks() > tasks  # its answer waits to be read
        body = {**LONG, "max_tokens": 1, "n": PLACES}
        assert keyless.http.post("/v1/chat/completions", json=body).status_code == 200
        read_until(reader, b"data: [DONE]")
    wait_until(lambda: keyless.event_loop_tasks() <= tasks)
