"""What HTTP leaves to clients: spellings of a path, methods, content encodings and upgrades."""

import gzip
import json
import re
import socket
import sys
import zlib

import anthropic
import openai
import pytest

from tests.polling import wait_until

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TOKENIZE = json.dumps({"prompt": "one two"}).encode()
JSON_HEADERS = {"content-type": "application/json"}


def raw(server, method, target, body=b"", host="127.0.0.1", **headers):
    """Send a request with exactly this target. Returns its status, headers and body."""
    lines = [f"{method} {target} HTTP/1.1", f"host: {host}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""])
    with socket.create_connection(("127.0.0.1", int(server.port))) as connection:
        connection.sendall(head.encode() + body)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, content = received.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    named = dict(field.lower().split(": ", 1) for field in fields)
    return int(status.split()[1]), named, content


@pytest.mark.parametrize(
    "target",
    [
        "/tokenize/",
        "//tokenize",
        "///tokenize//",
        "/tokenize/?a=b",
        "http://other.example/tokenize",
        "HTTPS://other.example:8000//tokenize/?a=b",
    ],
)
def test_a_post_to_another_spelling_of_its_path_is_answered_and_not_redirected(server, target):
    status, _, content = raw(server, "POST", target, TOKENIZE)
    assert status == 200
    assert json.loads(content)["count"] > 1


@pytest.mark.parametrize(
    "target", ["//v1/models", "/v1//models/", "/health/", "http://x", "http://x/", "//"]
)
def test_a_get_of_another_spelling_of_its_path_is_answered(server, target):
    assert raw(server, "GET", target)[0] == 200


def test_sdks_may_have_a_slash_at_the_end_of_their_base_url(demo_server):
    question = [{"role": "user", "content": "hi"}]
    for prefix in ("/v1/", "//v1//", "/"):
        url = demo_server.url + prefix
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            client.chat.completions.create(model="demo", messages=question, max_tokens=1)
            assert client.models.retrieve("demo").id == "demo"
    with anthropic.Anthropic(base_url=demo_server.url + "/", api_key="none") as client:
        client.messages.create(model="demo", messages=question, max_tokens=1)


def test_a_model_that_is_a_folder_is_found_by_its_name(client, model_folder, http):
    assert client.models.retrieve(model_folder.name).id == model_folder.name
    assert http.get(f"/v1/models/{model_folder.name}/").status_code == 200
    assert http.get("/v1/models/other/").status_code == 404


def documented(server):
    """Returns the methods of each documented path, which has a name in place of its parameter."""
    paths = server.http.get("/openapi.json").json()["paths"]
    methods = {}
    for path in (re.sub(r"\{.*\}", "x", each) for each in paths):
        fitting = [o for p, o in paths.items() if re.fullmatch(re.sub(r"\{.*\}", "[^/]+", p), path)]
        methods[path] = {method.upper() for operations in fitting for method in operations}
    return methods


def test_head_is_answered_like_get_without_a_body(server):
    readable = [path for path, methods in documented(server).items() if "GET" in methods]
    for path in [*readable, "/openapi.json"]:
        got, head = server.http.get(path), server.http.head(path)
        assert head.status_code == got.status_code
        assert head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"]


def test_options_and_405_name_all_methods_of_a_path(server):
    for path, methods in documented(server).items():
        more = {"HEAD", "OPTIONS"} if "GET" in methods else {"OPTIONS"}
        allowed = ", ".join(sorted(methods | more))
        options = server.http.options(path)
        assert (options.status_code, options.headers["allow"], options.text) == (204, allowed, "")
        wrong = server.http.patch(path)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, allowed)
    assert "DELETE" in server.http.options("/v1/responses/x").headers["allow"]
    assert server.http.options("/openapi.json").headers["allow"] == "GET, HEAD, OPTIONS"
    assert server.http.options("/v1/nope").status_code == 404


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/realtime", "/health"])
def test_a_websocket_is_refused_with_the_status_after_which_codex_uses_http(server, path):
    log_before = len(server.log.read_text())
    handshake = {"connection": "Upgrade", "upgrade": "WebSocket", "sec_websocket_version": "13"}
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    status, headers, content = raw(server, "GET", path, sec_websocket_key=key, **handshake)
    assert (status, headers["upgrade"]) == (426, "http/1.1")
    assert json.loads(content)["error"]["code"] == "websocket_unsupported"
    assert "WebSocket" not in server.log.read_text()[log_before:]


def test_an_offer_of_http_2_as_from_java_is_ignored_and_the_body_is_read(server):
    log_before = len(server.log.read_text())
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAMAAA"}
    status, _, content = raw(server, "POST", "/tokenize", TOKENIZE, **offer)
    assert (status, json.loads(content)["count"] > 1) == (200, True)
    assert "upgrade" not in server.log.read_text()[log_before:].lower()


def without_header(body):
    """Compress in the format that HTTP's "deflate" should not mean, but does for some clients."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


ENCODERS = {
    "gzip": [gzip.compress, lambda body: gzip.compress(body[:5]) + gzip.compress(body[5:])],
    "deflate": [zlib.compress, without_header],
    "zstd": [zstd.compress, lambda body: zstd.compress(body[:5]) + zstd.compress(body[5:])],
}
CASES = [(name, encode) for name, each in ENCODERS.items() for encode in each]


@pytest.mark.parametrize(("encoding", "encode"), CASES)
def test_a_compressed_body_is_decoded(http, encoding, encode):
    body, plain = encode(TOKENIZE), http.post("/tokenize", content=TOKENIZE)
    in_pieces = (body[at : at + 3] for at in range(0, len(body), 3))
    for content, spelling in ((body, encoding), (in_pieces, encoding.upper())):
        headers = {"content-encoding": spelling}
        answer = http.post("/tokenize", content=content, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.json() == plain.json()


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "compress", "utf-8"])
def test_a_body_in_another_encoding_is_refused_by_name(http, encoding):
    headers = {"content-encoding": encoding}
    refused = http.post("/tokenize", content=TOKENIZE, headers=headers)
    assert (refused.status_code, refused.headers["accept-encoding"]) == (415, "gzip, deflate, zstd")
    error = refused.json()["error"]
    assert error["code"] == "unsupported_encoding"
    assert error["message"].startswith(f"Content-Encoding '{encoding}' is not supported")
    assert http.post("/v1/messages", headers=headers).json()["type"] == "error"


@pytest.mark.parametrize(("encoding", "encode"), CASES)
def test_a_damaged_compressed_body_is_refused(http, encoding, encode):
    headers = {"content-encoding": encoding}
    for damaged in (encode(TOKENIZE)[:-1], encode(TOKENIZE) + b"\x07", TOKENIZE):
        refused = http.post("/tokenize", content=damaged, headers=headers)
        assert refused.status_code == 400
        assert f"{encoding} data" in refused.json()["error"]["message"]


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_body_that_decodes_to_more_than_the_limit_is_refused(limited_server, encoding):
    encode, headers = ENCODERS[encoding][0], {"content-encoding": encoding}
    for size, status in ((1900, 200), (2100, 413)):
        body = json.dumps({"prompt": "x" * (size - 20)}).encode().ljust(size)
        answer = limited_server.http.post("/tokenize", content=encode(body), headers=headers)
        assert answer.status_code == status, answer.text


def test_an_empty_encoding_is_none(http):
    for encoding in ("", "identity"):
        headers = {"content-encoding": encoding}
        assert http.post("/tokenize", content=TOKENIZE, headers=headers).status_code == 200


def test_health_is_that_of_the_worker(start_server):
    server = start_server().wait_until_listening()
    assert raw(server, "GET", "/health")[0] == (200 if server.is_ready() else 503)
    server.wait_until_ready()
    for target in ("/health", "/health/", "/health/ready"):
        assert raw(server, "GET", target)[0] == 200
    server.kill_worker()
    wait_until(lambda: not server.is_ready())
    assert raw(server, "GET", "/health")[0] == 503
