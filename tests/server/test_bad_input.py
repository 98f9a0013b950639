"""Malformed and huge bodies: each is answered in its dialect and delays no other request."""

import gzip
import json
import re
import sys
import threading
import zlib
from pathlib import Path

import httpx
import pytest

from app.openapi import BODIES
from app.settings import Settings
from tests.server.vitals import unharmed

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LARGE = 10_000_000
USER = {"role": "user", "content": "x"}


@pytest.fixture(scope="module", autouse=True)
def _no_harm(server):
    with unharmed(server, 3 * 2**30):
        yield


@pytest.fixture(scope="module")
def good(model_folder):
    """A valid request of each endpoint as JSON, with a `%s` where further members can follow."""
    chat = f'"messages":[{json.dumps(USER)}]'
    decided = '"questions":[{"type":"predicate","instructions":"x"}]'
    return {
        "/v1/chat/completions": f'{{"max_tokens":1,{chat}%s}}',
        "/v1/chat/completions/control": '{"id":"x","action":"reasoning_end"%s}',
        "/v1/completions": '{"max_tokens":1,"prompt":"x"%s}',
        "/v1/responses": '{"max_output_tokens":1,"input":"x"%s}',
        "/v1/responses/input_tokens": '{"input":"x"%s}',
        "/v1/messages": f'{{"model":"{model_folder.name}","max_tokens":1,{chat}%s}}',
        "/v1/messages/count_tokens": f'{{"model":"{model_folder.name}",{chat}%s}}',
        "/tokenize": f"{{{chat}%s}}",
        "/detokenize": '{"tokens":[5]%s}',
        "/v1/decisions": f'{{"model":"{model_folder.name}","input":"x",{decided}%s}}',
        "/v1/systemone": '{"state":"x","questions":{"a":{"type":"noul","instructions":"x"}}%s}',
    }


def is_refused(response):
    """Check that the response is a 400 with a message. Always returns True."""
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]
    return True


def is_accepted_or_refused(response):
    return response.status_code == 200 or is_refused(response)


def post(http, path, text):
    return http.post(path, content=text if isinstance(text, bytes) else text.encode())


def tools(path, schema):
    """Returns a member `tools` in the dialect of `path` with `schema` as a function's schema."""
    match path:
        case "/v1/responses" | "/v1/responses/input_tokens":
            tool = f'{{"type":"function","name":"f","parameters":{schema}}}'
        case "/v1/messages" | "/v1/messages/count_tokens":
            tool = f'{{"name":"f","input_schema":{schema}}}'
        case _:
            tool = f'{{"type":"function","function":{{"name":"f","parameters":{schema}}}}}'
    return f',"tools":[{tool}]'


CONTROL = "/v1/chat/completions/control"
WITHOUT_TOOLS = ("/v1/completions", CONTROL, "/detokenize", "/v1/decisions", "/v1/systemone")
WITH_TOOLS = [path for path in BODIES if path not in WITHOUT_TOOLS]
NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, "9" * 5000, "1e-400"]
FIELDS = [
    *("temperature", "top_p", "top_k", "seed", "min_tokens", "priority", "timeout", "n"),
    *("max_denoising_steps", "entropy_bound", "confidence_threshold", "max_tokens"),
    *("presence_penalty", "frequency_penalty", "top_logprobs"),
]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: f"{number[:9]}-{len(number)}")
def test_numbers_of_any_kind_are_accepted_or_refused(http, good, number):
    for path in BODIES:
        for field in FIELDS:
            response = post(http, path, good[path] % f',"{field}":{number}')
            assert is_accepted_or_refused(response)
    for path in WITH_TOOLS:
        response = post(http, path, good[path] % tools(path, f'{{"enum":[{number}]}}'))
        assert is_accepted_or_refused(response)
    assert number != "1e999" or is_refused(response)


@pytest.mark.parametrize("number", ["1e39", "3e38", "1e6", "1e-45", "1e-300"])
def test_numbers_at_the_limits_of_float32_do_no_harm_beside_another_request(http, good, number):
    long = {"prompt": "x", "max_tokens": 1500, "stream": True}
    with http.stream("POST", "/v1/completions", json=long) as stream:
        lines = stream.iter_lines()
        next(lines)
        for path in BODIES:
            for field in set(FIELDS) - {"timeout"}:
                response = post(http, path, good[path] % f',"{field}":{number}')
                assert is_accepted_or_refused(response)
        assert list(lines)[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("levels", [50, 100, 190, 1000, 100_000])
def test_deeply_nested_values_are_accepted_or_refused(http, good, levels):
    for path in BODIES:
        for deep in ('{"a":' * levels + "1" + "}" * levels, "[" * levels + "]" * levels):
            body = deep if deep[0] == "[" else good[path] % f',"x":{deep}'
            assert is_refused(post(http, path, body))
            response = post(http, path, good[path] % f',"metadata":{{"a":{deep}}}')
            assert is_accepted_or_refused(response)
    for path in WITH_TOOLS:
        for opened, closed in (('{"properties":{"a":', "}}"), ('{"not":', "}"), ('{"a":', "}")):
            schema = opened * levels + "{}" + closed * levels
            response = post(http, path, good[path] % tools(path, schema))
            assert is_accepted_or_refused(response)
    arguments = '{"a":' * levels + "1" + "}" * levels
    call = {"id": "a", "function": {"name": "f", "arguments": arguments}}
    turn = {"role": "assistant", "tool_calls": [call]}
    item = {"type": "function_call", "call_id": "a", "name": "f", "arguments": arguments}
    for path, body in (
        ("/v1/chat/completions", {"messages": [USER, turn], "max_tokens": 1}),
        ("/v1/responses", {"input": [item], "max_output_tokens": 1}),
    ):
        assert is_accepted_or_refused(http.post(path, json=body))


@pytest.mark.parametrize("path", WITH_TOOLS)
@pytest.mark.parametrize("schema", ['{"$schema":[]}', '{"$schema":5}', '{"$schema":{"a":1}}'])
def test_a_schema_with_an_invalid_dialect_is_shown_without_it(http, good, path, schema):
    assert post(http, path, good[path] % tools(path, schema)).status_code == 200


def test_a_lone_surrogate_becomes_a_replacement_character_in_every_dialect(http, good):
    whole = http.post("/tokenize", json={"prompt": "a\ufffdb 😀 \\ud800"}).json()["tokens"]
    for half in ("\\ud83d", "\\uDE00", "\\ude00\\ud83d"[:6]):
        body = f'{{"prompt":"a{half}b \\ud83d\\ude00 \\\\ud800"}}'
        assert post(http, "/tokenize", body).json()["tokens"] == whole
    for path in BODIES:
        text = good[path].replace('"x"', '"x\\ud83d"') % ""
        assert post(http, path, text).status_code == 200
    metadata = ',"metadata":{"\\ud800":"\\udfff"}'
    kept = post(http, "/v1/responses", good["/v1/responses"] % metadata).json()
    assert http.get(f"/v1/responses/{kept['id']}").json()["metadata"] == {"\ufffd": "\ufffd"}


ODD = [
    *("\x00", "\ue000", "\ue001", "\ue0000:0\ue001", "\ufeff", "\uffff", "\U0010ffff", "\u202e"),
    *("e" + "\u0301" * 500, "👩‍👩‍👧‍👦", "\u0378", "\u2028", "שלום", "ﷺ", "\x7f", "\x1b[2J"),
]


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_odd_characters_come_back_unchanged(http, good, text):
    tokens = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": tokens[1:]}).json()["prompt"] == text
    for path in BODIES:
        body = good[path].replace('"x"', json.dumps(f"x{text}", ensure_ascii=False)) % ""
        assert post(http, path, body).status_code == 200


@pytest.mark.parametrize("path", BODIES)
def test_bodies_that_are_not_json_in_utf_8_are_refused_and_others_accepted(http, good, path):
    text = good[path] % ""
    assert is_refused(post(http, path, gzip.compress(text.encode())))
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        response = http.post(path, content=text.encode(encoding))
        assert is_refused(response)
        message = response.json()["error"]["message"]
        assert message == f"The body is {encoding[:6].upper()} text; JSON must be sent as UTF-8."
    latin = text.replace("x", "é").encode("latin-1") + b"\xe9"
    assert is_refused(http.post(path, content=latin))
    assert http.post(path, content=text.encode("utf-8-sig")).status_code == 200
    chunked = http.post(path, content=(text[at : at + 7].encode() for at in range(0, 999, 7)))
    assert chunked.status_code == 200
    twice = f'{text[:-1]},"model":5,"model":null}}'
    assert is_accepted_or_refused(http.post(path, content=twice))
    for kind in ("text/plain", "multipart/form-data", "\xff"):
        headers = {"content-type": kind.encode("latin-1")}
        assert http.post(path, content=text.encode(), headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("encoding", "bomb"),
    [
        ("gzip", lambda: gzip.compress(bytes(2**26)) * 128),
        ("deflate", lambda: zlib.compress(bytes(2**28))),
        ("zstd", lambda: zstd.compress(bytes(2**26)) * 128),
    ],
)
def test_a_body_that_decodes_to_gigabytes_is_refused_before_it_does(server, encoding, bomb):
    def most_bytes():
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status)[0])

    before, headers = most_bytes(), {"content-encoding": encoding}
    response = server.http.post("/tokenize", content=bomb(), headers=headers)
    assert response.status_code == 413
    assert most_bytes() - before < 4 * Settings().max_body_bytes


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "PATCH", "TRACE", "DELETE", "NONE"])
def test_other_methods_cause_no_server_error(http, method):
    for path in (*BODIES, "/", "/v1/models", "/v1/models/x", "/health/ready", "/v1/responses/x"):
        assert http.request(method, path).status_code in (200, 204, 400, 404, 405)


def test_a_huge_page_limit_is_refused(http):
    kept = http.post("/v1/responses", json={"input": "x", "max_output_tokens": 1}).json()["id"]
    assert is_refused(http.get(f"/v1/responses/{kept}/input_items?limit={'9' * 5000}"))


def repeated(before, item, after):
    """Returns a body of about `LARGE` bytes with `item` as often as it fits in."""
    count = (LARGE - len(before) - len(after)) // (len(item) + 1)
    return f"{before}{','.join([item] * count)}{after}"


CHAT = '{"max_tokens":1,"messages":['
MESSAGES = '{"model":"MODEL","max_tokens":1,"messages":['
LARGE_BODIES = {
    "one string": lambda: (
        "/v1/chat/completions",
        f'{CHAT}{{"role":"user","content":"{"x" * LARGE}"}}]}}',
    ),
    "control tokens": lambda: (
        "/v1/chat/completions",
        CHAT + json.dumps({"role": "user", "content": "<|turn>" * (LARGE // 7)}) + "]}",
    ),
    "messages": lambda: ("/v1/chat/completions", repeated(CHAT, json.dumps(USER), "]}")),
    "stops": lambda: (
        "/v1/chat/completions",
        repeated(f'{CHAT}{json.dumps(USER)}],"stop":[', '"a"', "]}"),
    ),
    "token ids": lambda: ("/v1/completions", repeated('{"prompt":[', "5", "]}")),
    "prompts": lambda: ("/v1/completions", repeated('{"prompt":[', '"a"', "]}")),
    "empty tools": lambda: (
        "/v1/chat/completions",
        repeated(f'{CHAT}{json.dumps(USER)}],"tools":[', "{}", "]}"),
    ),
    "wrong includes": lambda: ("/v1/responses", repeated('{"input":"x","include":[', "1", "]}")),
    "a schema": lambda: (
        "/v1/chat/completions",
        repeated(
            f'{CHAT}{json.dumps(USER)}],"tools":[{{"type":"function","function":{{"name":"f","parameters":{{"type":[',
            "{}",
            "]}}}]}",
        ),
    ),
    "brackets": lambda: ("/v1/messages", "[" * LARGE),
    "blocks": lambda: (
        "/v1/messages",
        repeated(f'{MESSAGES}{{"role":"user","content":[', '{"type":"text","text":"x"}', "]}]}"),
    ),
}


@pytest.mark.parametrize("name", LARGE_BODIES)
def test_ten_megabytes_are_refused_while_other_requests_are_answered(server, model_folder, name):
    path, body = LARGE_BODIES[name]()
    body = body.replace("MODEL", model_folder.name)
    answered, done = 0, threading.Event()

    def ask():
        nonlocal answered
        with httpx.Client(base_url=server.url, timeout=60) as other:
            while True:  # at least once, even if the refusal comes at once
                other.get("/health/live").raise_for_status()
                answered += 1
                if done.wait(0.01):  # leaves the processor to the server
                    break

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        response = httpx.post(f"{server.url}{path}", content=body, timeout=100)
        assert response.status_code in (400, 413), response.text
    finally:
        done.set()
        asking.join()
    assert answered
