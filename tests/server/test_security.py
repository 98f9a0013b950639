"""Who may ask: API keys, and pages of other origins."""

import httpx
import openai
import pytest

from tests.conftest import Server
from tests.server.test_errors import GOOD, envelope

KEYS = ("first-key", "second-key", "third-key")


@pytest.fixture(scope="module")
def guarded(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text(f"# whose\n{KEYS[2]} priority=-5\n")
    server = Server(
        model_folder,
        folder / "log",
        EASEL_API_KEY=f"{KEYS[0]}, {KEYS[1]}",
        EASEL_API_KEY_FILE=str(folder / "keys"),
        EASEL_METRICS_OPEN="false",
        EASEL_CORS_ORIGINS="https://page.example",
    ).wait_until_ready()
    yield server
    assert server.stop() == 0


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_the_server(guarded, key):
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0) as client:
        assert client.models.list().data
    assert httpx.get(f"{guarded.url}/v1/models", headers={"x-api-key": key}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/nope", "/"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer first"},
        {"authorization": "Basic first-key"},
        {"x-api-key": ""},
    ],
)
def test_without_a_key_nothing_is_told(guarded, path, headers):
    response = httpx.get(f"{guarded.url}{path}", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert envelope(response)["code"] == "invalid_api_key"


def test_anthropic_s_clients_are_told_in_their_terms(guarded):
    response = httpx.post(f"{guarded.url}/v1/messages", json={})
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"


def test_a_wrong_key_is_the_sdk_s_authentication_error(guarded):
    with (
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(model="demo", messages=GOOD["messages"])


def test_health_needs_no_key(guarded):
    assert httpx.get(f"{guarded.url}/health/ready").status_code == 200


def test_a_page_of_an_allowed_origin_may_ask_and_read_what_went_wrong(guarded):
    origin = {"origin": "https://page.example"}
    preflight = {
        **origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    allowed = httpx.options(f"{guarded.url}/v1/chat/completions", headers=preflight)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == origin["origin"]
    refused = httpx.get(f"{guarded.url}/v1/models", headers=origin)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == origin["origin"]
    other = httpx.get(f"{guarded.url}/v1/models", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


def test_no_page_may_ask_by_default(http):
    response = http.get("/v1/models", headers={"origin": "https://page.example"})
    assert "access-control-allow-origin" not in response.headers


def test_listening_for_everyone_without_a_key_is_warned_of(start_server):
    warning = "can use this server"
    assert warning in logged(start_server(EASEL_HOST="0.0.0.0"))
    assert warning not in logged(start_server(EASEL_HOST="0.0.0.0", EASEL_API_KEY="key"))
    assert warning not in logged(start_server())


def logged(server):
    server.wait_until_ready()
    return server.log.read_text()


def test_a_file_without_a_key_stops_the_start(start_server, tmp_path):
    for name, content in (("empty", ""), ("missing", None)):
        if content is not None:
            (tmp_path / name).write_text(content)
        server = start_server(EASEL_API_KEY_FILE=str(tmp_path / name))
        assert server.process.wait(60) == 2
        assert "EASEL_API_KEY_FILE" in server.log.read_text()


@pytest.mark.parametrize("behind", ["prio=1", "priority=high", "priority=1 2", "another"])
def test_what_stands_behind_a_key_and_is_no_priority_stops_the_start(start_server, behind):
    server = start_server(EASEL_API_KEY=f"key {behind}")
    assert server.process.wait(60) == 2
    assert "EASEL_API_KEY: only a priority may follow a key" in server.log.read_text()


def test_a_key_is_never_shown(guarded):
    assert not any(key in guarded.log.read_text() for key in KEYS)
