"""Access to the server: API keys and pages of other origins."""

import openai
import pytest

from tests.polling import wait_until
from tests.server.test_errors import GOOD, envelope

KEYS = ("first-key", "second-key", "third-key")


@pytest.fixture(scope="module")
def guarded(shared_server, tmp_path_factory):
    """A server with keys and an allowed origin, whose metrics need a key too."""
    file = tmp_path_factory.mktemp("guarded") / "keys"
    file.write_text(f"# a comment\n{KEYS[2]} priority=-5\n")
    return shared_server(
        EASEL_API_KEY=f"{KEYS[0]}, {KEYS[1]}",
        EASEL_API_KEY_FILE=str(file),
        EASEL_METRICS_OPEN="false",
        EASEL_CORS_ORIGINS="https://page.example",
    )


@pytest.mark.parametrize("key", KEYS)
def test_each_key_gives_access(guarded, key):
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0) as client:
        assert client.models.list().data
    for headers in (
        {"x-api-key": key},
        {"api-key": key},
        {"authorization": "Bearer none", "x-api-key": key},  # Claude Code can send two
        {"authorization": f"Bearer {key}", "api-key": "none"},
    ):
        assert guarded.http.get("/v1/models", headers=headers).status_code == 200
    azure = openai.AzureOpenAI(
        base_url=f"{guarded.url}/v1", api_key=key, api_version="x", max_retries=0
    )
    with azure as client:
        assert client.models.list().data


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/nope", "/"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer first"},
        {"authorization": "Basic first-key"},
        {"x-api-key": ""},
        {"api-key": "first"},
        {"authorization": "Bearer none", "x-api-key": "none", "api-key": ""},
    ],
)
def test_requests_without_a_key_are_refused(guarded, path, headers):
    response = guarded.http.get(path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert envelope(response)["code"] == "invalid_api_key"


def test_clients_of_anthropic_get_the_refusal_in_their_dialect(guarded):
    response = guarded.http.post("/v1/messages", json={})
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"


def test_the_sdk_raises_an_authentication_error_for_a_wrong_key(guarded):
    with (
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(model="demo", messages=GOOD["messages"])


def test_health_needs_no_key(guarded):
    for path in ("/health", "/health/", "//health/ready", "/health/live"):
        assert guarded.http.get(guarded.url + path).status_code == 200


def test_a_page_of_an_allowed_origin_may_send_requests_and_read_errors(guarded):
    origin = {"origin": "https://page.example"}
    preflight = {
        **origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    allowed = guarded.http.options("/v1/chat/completions", headers=preflight)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == origin["origin"]
    refused = guarded.http.get("/v1/models", headers=origin)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == origin["origin"]
    other = guarded.http.get("/v1/models", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


def test_a_public_page_of_an_allowed_origin_may_use_a_private_network(guarded):
    preflight = {
        "access-control-request-method": "POST",
        "access-control-request-private-network": "true",
    }
    for origin, status in (("https://page.example", 200), ("https://other.example", 400)):
        answer = guarded.http.options("/v1/models", headers={**preflight, "origin": origin})
        assert answer.status_code == status
        assert ("access-control-allow-origin" in answer.headers) == (status == 200)
        if status == 400:
            assert envelope(answer)["message"] == "Disallowed CORS origin."
            assert answer.headers["vary"].startswith("Origin")
        if status == 200:
            assert answer.headers["access-control-allow-private-network"] == "true"


def test_pages_may_read_every_header_that_a_browser_would_hide(guarded):
    origin = {"origin": "https://page.example", "authorization": f"Bearer {KEYS[0]}"}
    answers = [
        guarded.http.get("/v1/models", headers={"origin": origin["origin"]}),
        guarded.http.get("/v1/models", headers=origin),
        guarded.http.options("/v1/models", headers=origin),
        guarded.http.post("/tokenize", headers={**origin, "content-encoding": "br"}),
        guarded.http.get("/v1/nope", headers=origin),
    ]
    # Browsers show the first ones to every page. Those after them are not for pages.
    shown = {"cache-control", "content-length", "content-type"}
    hidden = {"date", "server", "vary"}
    for answer in answers:
        exposed = set(answer.headers["access-control-expose-headers"].split(", "))
        sent = {name for name in answer.headers if not name.startswith("access-control-")}
        assert sent - exposed - shown - hidden == set()
        assert {"retry-after", "retry-after-ms"} <= exposed


def test_no_page_may_send_requests_by_default(http):
    response = http.get("/v1/models", headers={"origin": "https://page.example"})
    assert "access-control-allow-origin" not in response.headers


def test_a_server_that_everyone_can_reach_without_a_key_logs_a_warning(server, start_server):
    warning = "can use this server"
    # The warning is logged before the server answers requests, so no worker has to be loaded.
    exposed = start_server(EASEL_HOST="0.0.0.0").wait_until_listening()
    wait_until(lambda: warning in exposed.log.read_text())
    guarded = start_server(EASEL_HOST="0.0.0.0", EASEL_API_KEY="key").wait_until_listening()
    assert warning not in guarded.log.read_text()
    assert warning not in server.log.read_text()


def test_a_key_file_without_a_key_prevents_the_start(start_server, tmp_path):
    for name, content in (("empty", ""), ("missing", None)):
        if content is not None:
            (tmp_path / name).write_text(content)
        server = start_server(EASEL_API_KEY_FILE=str(tmp_path / name))
        assert server.process.wait(60) == 2
        assert "EASEL_API_KEY_FILE" in server.log.read_text()


@pytest.mark.parametrize("suffix", ["prio=1", "priority=high", "priority=1 2", "another"])
def test_a_key_followed_by_anything_but_a_priority_prevents_the_start(start_server, suffix):
    server = start_server(EASEL_API_KEY=f"key {suffix}")
    assert server.process.wait(60) == 2
    assert "EASEL_API_KEY: only a priority may follow a key" in server.log.read_text()


@pytest.mark.parametrize("value", [" ", ",", " , ,", "\t"])
def test_a_setting_of_keys_without_a_key_prevents_the_start(start_server, value):
    server = start_server(EASEL_API_KEY=value)
    assert server.process.wait(60) == 2
    assert "EASEL_API_KEY: Value error, the value is set, but has no key" in server.log.read_text()


def test_an_indented_comment_in_a_file_of_keys_is_no_key(start_server, tmp_path):
    (tmp_path / "keys").write_text("  # comment\n #\n\t\n")
    server = start_server(EASEL_API_KEY_FILE=str(tmp_path / "keys"))
    assert server.process.wait(60) == 2
    assert "has no key" in server.log.read_text()


def test_keys_are_never_logged(guarded):
    assert not any(key in guarded.log.read_text() for key in KEYS)
