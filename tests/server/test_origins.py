"""Pages of other origins and foreign host names, which reach a local server through a browser."""

import pytest

from tests.server.test_errors import envelope
from tests.server.test_http import raw

FOREIGN = [
    {"origin": "https://page.example"},
    {"origin": "null"},  # of a sandboxed frame or a local file
    {"origin": "http://["},
    {"origin": "http://localhost:1"},  # another server of this machine
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site", "origin": "http://localhost:1"},
    {"sec-fetch-site": "cross-site", "origin": "https://page.example"},
]
ACTIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "//chat/completions/"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/responses/input_tokens"),
    ("GET", "/v1/responses/resp_1"),
    ("DELETE", "/v1/responses/resp_1"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
]
BODY = b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}'
SIMPLE = {"content-type": "text/plain"}  # browsers send this without asking the server first


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_foreign_page_is_refused_with_the_name_of_the_setting(http, server, headers):
    before = server.ended().total()
    answer = http.post("/v1/chat/completions", content=BODY, headers={**SIMPLE, **headers})
    assert answer.status_code == 403
    error = envelope(answer)
    assert error["code"] == "origin_not_allowed"
    assert "EASEL_CORS_ORIGINS" in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert server.ended().total() == before


@pytest.mark.parametrize(("method", "path"), ACTIONS)
def test_a_foreign_page_is_refused_on_every_path_that_does_anything(server, method, path):
    for headers in ({"origin": "https://page.example"}, {"sec-fetch-site": "cross-site"}):
        answer = server.http.request(method, server.url + path, content=BODY, headers=headers)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def test_a_foreign_page_is_refused_in_the_dialect_of_the_path(http):
    answer = http.post("/v1/messages", headers={"origin": "https://page.example"})
    assert answer.json()["error"]["type"] == "permission_error"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-mode": "cors"},  # Node's fetch sends this
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "same-origin", "origin": "https://behind.a.proxy.example"},
    ],
)
def test_requests_that_come_from_no_foreign_page_are_answered(http, headers):
    answer = http.post("/v1/chat/completions", content=BODY, headers=headers)
    assert answer.status_code == 200


def test_a_page_of_the_server_itself_is_answered(server):
    for host in ("127.0.0.1", "LOCALHOST"):
        origin = f"http://{host.lower()}:{server.port}"
        headers = {"host": f"{host}:{server.port}", "origin": origin}
        answer = server.http.post("/v1/chat/completions", content=BODY, headers=headers)
        assert answer.status_code == 200


def test_a_link_on_a_foreign_page_may_be_followed(http):
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert http.get("/v1/models", headers=link).status_code == 200
    assert http.post("/v1/chat/completions", content=BODY, headers=link).status_code == 403


@pytest.mark.parametrize("named", ["https://page.example", "*"])
def test_a_page_that_the_setting_names_is_answered(shared_server, named):
    server = shared_server(EASEL_CORS_ORIGINS=f"{named},https://second.example")
    page = {"origin": "https://page.example", "sec-fetch-site": "cross-site"}
    answer = server.http.post("/v1/chat/completions", content=BODY, headers={**SIMPLE, **page})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] in ("https://page.example", "*")
    other = {**page, "origin": "https://other.example"}
    answer = server.http.post("/v1/chat/completions", content=BODY, headers=other)
    assert answer.status_code == (200 if named == "*" else 403)


@pytest.mark.parametrize(
    "host", ["rebound.example", "rebound.example:80", "localhost.evil.example"]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_foreign_host_is_refused_with_the_name_of_the_setting(server, host, path):
    # A name that leads to 127.0.0.1 makes a page of that name one of the server itself.
    headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    answer = server.http.post(path, content=BODY, headers=headers)
    assert answer.status_code == 403
    assert "EASEL_ALLOWED_HOSTS" in answer.json()["error"]["message"]
    assert answer.headers["x-request-id"]


def test_a_foreign_host_reads_nothing(server):
    for path in ("/", "/metrics", "/v1/models", "/openapi.json", "/nowhere"):
        answer = server.http.get(path, headers={"host": "rebound.example"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8000", "127.0.0.1", "[::1]", "[::1]:80"])
def test_the_names_of_this_machine_are_answered(server, host):
    assert server.http.get("/v1/models", headers={"host": host}).status_code == 200


def test_a_request_without_a_valid_host_is_refused(server):
    for host in ("", "a@127.0.0.1", "[::1", "127.0.0.1:x"):
        status, _, _ = raw(server, "GET", "/v1/models", host=host)
        assert status in (400, 403)


def test_hosts_that_the_setting_names_are_answered(shared_server):
    server = shared_server(EASEL_ALLOWED_HOSTS="box.example, *.lan.example")
    hosts = {"box.example:80": 200, "a.lan.example": 200, "127.0.0.1": 200, "c.example": 403}
    answers = {host: server.http.get("/v1/models", headers={"host": host}) for host in hosts}
    assert {host: answer.status_code for host, answer in answers.items()} == hosts


def test_every_name_leads_to_a_server_that_other_machines_reach(start_server):
    # As in a container, whose neighbours know it by the name of its service.
    server = start_server(EASEL_HOST="0.0.0.0").wait_until_listening()
    for host in ("easel:8000", "box.example", "192.0.2.7:8000"):
        answer = server.http.get("/health/live", headers={"host": host})
        assert answer.status_code == 200
        foreign = {"host": host, "origin": "https://page.example"}
        assert server.http.post("/tokenize", headers=foreign).status_code == 403


def test_names_are_checked_on_any_address_if_the_setting_names_some(start_server):
    server = start_server(EASEL_HOST="0.0.0.0", EASEL_ALLOWED_HOSTS="easel").wait_until_listening()
    for host, status in (("easel:8000", 200), ("127.0.0.1", 200), ("rebound.example", 403)):
        assert server.http.get("/health/live", headers={"host": host}).status_code == status


@pytest.mark.parametrize("value", ["a*", "*a.example", "http://a.example", "a.example:80", ","])
def test_a_name_that_can_be_no_host_prevents_the_start(start_server, value):
    server = start_server(EASEL_ALLOWED_HOSTS=value)
    assert server.process.wait(60) == 2
    assert "EASEL_ALLOWED_HOSTS" in server.log.read_text()
