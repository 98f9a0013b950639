"""Images are fetched only from hosts that the configuration names."""

import asyncio
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

import app.prompting.image_hosts
from app.errors import BadRequest
from app.prompting.image_hosts import ImageHosts
from tests.pictures import file_bytes, noise_picture

PNG = file_bytes(noise_picture(8, 8))


@pytest.fixture
def host():
    """Yields the address of a web server, and the paths that were requested from it."""
    requested = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requested.append(self.path)
            self.send_response({"/gone": 404, "/elsewhere": 302}.get(self.path, 200))
            self.send_header("Location", "/cat.png")
            self.send_header("Content-Type", "image/png; x=y")
            self.end_headers()
            self.wfile.write(PNG)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    yield f"127.0.0.1:{server.server_port}", requested
    server.shutdown()
    server.server_close()


def fetch(hosts, url, most_bytes=10_000):
    (file,) = fetch_all(hosts, [url], most_bytes)
    return file


def fetch_all(hosts, urls, most_bytes=10_000):
    fields = [(f"messages.{index}", url) for index, url in enumerate(urls)]
    return asyncio.run(ImageHosts(hosts).fetch_all(fields, most_bytes=most_bytes))


def test_a_file_of_a_named_host_is_fetched(host):
    address, requested = host
    assert fetch([address], f"http://{address}/cat.png") == PNG
    assert requested == ["/cat.png"]


@pytest.mark.parametrize(
    ("named", "url"),
    [
        ("pictures.example", "http://pictures.example/a"),
        ("Pictures.example", "https://PICTURES.example:443/a"),
        ("pictures.example:443", "https://pictures.example/a"),
        ("pictures.example:80", "http://pictures.example:80/a"),
        ("[::1]:9", "http://[::1]:9/a"),
        ("[::1]", "http://[::1]/a"),
        ("::1", "http://[::1]/a"),
    ],
)
def test_a_host_without_a_port_stands_for_the_standard_port(monkeypatch, named, url):
    requested = []

    def refuse(_client, _method, each):
        requested.append(each)
        raise httpx.ConnectError("no such machine")

    monkeypatch.setattr(httpx.AsyncClient, "stream", refuse)
    with pytest.raises(BadRequest, match="ConnectError"):
        fetch([named], url)
    assert requested == [url]


@pytest.mark.parametrize(
    ("named", "url"),
    [
        ("pictures.example:443", "http://pictures.example/a"),
        ("pictures.example:80", "https://pictures.example/a"),
        ("pictures.example", "https://pictures.example:80/a"),
    ],
)
def test_another_port_of_a_named_host_is_refused(named, url):
    with pytest.raises(BadRequest, match="only from hosts"):
        fetch([named], url)


@pytest.mark.parametrize("user", ["user", "user:pw", ":pw", "other.example"])
def test_a_url_with_a_user_name_is_refused_and_nothing_is_sent(host, user):
    address, requested = host
    with pytest.raises(BadRequest, match="user name or a password") as error:
        fetch([address], f"http://{user}@{address}/cat.png")
    assert "pw" not in error.value.message.replace("password", "")
    assert requested == []


@pytest.mark.parametrize(
    "named",
    [[], ["other.example"], ["127.0.0.1"], ["127.0.0.1:1"], ["127.0.0.1.example", "0.0.1"]],
)
def test_nothing_is_requested_from_another_host(host, named):
    address, requested = host
    with pytest.raises(BadRequest, match="only from hosts") as error:
        fetch(named, f"http://{address}/")
    assert error.value.param == "messages.0"
    assert requested == []


def test_a_redirect_is_not_followed(host):
    address, requested = host
    with pytest.raises(BadRequest, match="answered with status 302"):
        fetch([address], f"http://{address}/elsewhere")
    assert requested == ["/elsewhere"]


def test_the_error_says_why_a_file_cannot_be_fetched(host):
    address, _ = host
    for path, most, why in (("gone", 10_000, "404"), ("cat.png", 20, "larger than 20 bytes")):
        with pytest.raises(BadRequest, match=why):
            fetch([address], f"http://{address}/{path}", most)
    with pytest.raises(BadRequest, match="ConnectError"):
        fetch(["127.0.0.1:1"], "http://127.0.0.1:1/")


def test_the_files_of_one_request_are_fetched_together_and_have_a_limit(host, monkeypatch):
    address, requested = host
    urls = [f"http://{address}/{number}" for number in range(3)]
    assert fetch_all([address], urls) == [PNG] * 3
    assert sorted(requested) == ["/0", "/1", "/2"]
    monkeypatch.setattr(app.prompting.image_hosts, "MOST_BYTES_TOGETHER", 2 * len(PNG))
    with pytest.raises(BadRequest, match="bytes together"):
        fetch_all([address], urls)


def test_a_host_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(app.prompting.image_hosts, "_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BadRequest, match="can't be fetched"):
            fetch([address], f"http://{address}/cat.png")
