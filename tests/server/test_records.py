"""Records of answers, and `easel replay`, which makes them again."""

import json
import subprocess
import sys

import pytest

from tests.counting import count, last_number

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
COUNT = {"messages": [{"role": "user", "content": count(2)}]}
RECORD = {"diffusion": {"record": True}}
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
FUNCTION = {"name": "get_weather", "parameters": SCHEMA, "strict": True}
REQUESTS = {
    "chat": (CHAT, COUNT),
    "negative seed": (CHAT, {**COUNT, "seed": -5, "temperature": 0.7}),
    "several answers": (CHAT, {**COUNT, "n": 3, "top_p": 0.9, "stop": ["12"]}),
    "history and tools": (
        CHAT,
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Weather in Paris?"}]},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "a",
                            "type": "function",
                            "function": {"name": "get_weather", "arguments": '{"name": "Paris"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "a", "content": "sunny"},
            ],
            "tools": [{"type": "function", "function": FUNCTION}],
            "reasoning_effort": "low",
            "user": "me",
        },
    ),
    "schema": (
        CHAT,
        {
            "messages": [{"role": "user", "content": "JSON for Anna"}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": SCHEMA},
            },
            "max_completion_tokens": 40,
        },
    ),
    "prediction": (CHAT, {**COUNT, "prediction": {"type": "content", "content": "1, 2, 3, 5"}}),
    "completions": (COMPLETIONS, {"prompt": ["one", "two"], "max_tokens": 9, "n": 2}),
    "infilling": (COMPLETIONS, {"prompt": [5, 6, 7], "suffix": " 7, 8", "max_tokens": 5}),
}


@pytest.fixture(scope="module")
def http(demo_server):
    return demo_server.http


def answer(http, path, body):
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def replay(file, *options, stdin=None):
    return subprocess.run(
        [sys.executable, "-m", "app", "replay", str(file), *options],
        capture_output=True,
        text=True,
        input=stdin,
        check=False,
    )


@pytest.mark.parametrize("name", REQUESTS)
def test_a_record_makes_the_same_answer_again(http, name):
    path, body = REQUESTS[name]
    recorded = answer(http, path, {**body, **RECORD})["diffusion"]["record"]
    assert recorded["endpoint"] == path
    again = answer(http, path, recorded["request"])["diffusion"]["record"]
    assert again == recorded


def test_a_record_has_the_tokens_and_the_steps_of_each_block(http):
    whole = answer(http, CHAT, {**COUNT, **RECORD, "return_token_ids": True})
    recorded = whole["diffusion"]["record"]
    assert recorded["fingerprint"] == whole["system_fingerprint"]
    (choice,) = recorded["choices"]
    assert choice["prompt_token_ids"] == whole["prompt_token_ids"]
    tokens = [token for block in choice["blocks"] for token in block["token_ids"]]
    assert tokens == whole["choices"][0]["token_ids"]
    steps = sum(block["denoising_steps"] for block in choice["blocks"])
    assert steps == whole["diffusion"]["denoising_steps"]
    assert len(choice["blocks"]) == whole["diffusion"]["blocks"]


def test_the_last_chunk_of_each_streamed_choice_has_its_record(http):
    text = http.post(CHAT, json={**COUNT, **RECORD, "stream": True, "n": 2, "seed": 4}).text
    lines = [line[6:] for line in text.split("\n") if line[:6] == "data: "]
    chunks = [json.loads(line) for line in lines if line != "[DONE]"]
    records = [chunk["diffusion"]["record"] for chunk in chunks if "diffusion" in chunk]
    choices = [choice for record in records for choice in record["choices"]]
    whole = answer(http, CHAT, {**COUNT, **RECORD, "n": 2, "seed": 4})["diffusion"]["record"]
    assert sorted(choices, key=lambda choice: choice["index"]) == whole["choices"]
    assert {chunk["system_fingerprint"] for chunk in chunks} == {whole["fingerprint"]}


@pytest.mark.parametrize("nothing", [{}, {"diffusion": {}}, {"diffusion": {"record": False}}])
@pytest.mark.parametrize(("path", "body"), [(CHAT, COUNT), (COMPLETIONS, {"prompt": "one"})])
def test_an_answer_has_no_record_unless_it_is_requested(http, path, body, nothing):
    whole = answer(http, path, {**body, **nothing, "max_tokens": 3})
    assert "record" not in whole["diffusion"]
    assert whole["system_fingerprint"].startswith("fp_")


def test_replay_says_that_an_answer_is_the_same(demo_server, tmp_path):
    whole = answer(demo_server.http, CHAT, {**COUNT, **RECORD})
    file = tmp_path / "answer.json"
    file.write_text(json.dumps(whole))
    for result in (
        replay(file, "--url", demo_server.url),
        replay("-", "--url", f"{demo_server.url}/v1/", stdin=file.read_text()),
        replay(file, "--model", "demo"),  # on a server of its own
    ):
        assert (result.returncode, result.stdout) == (
            0,
            f"the same: {2 * last_number(2)} tokens in 2 blocks\n",
        )


def test_replay_says_where_an_answer_differs(demo_server, tmp_path):
    whole = answer(demo_server.http, CHAT, {**COUNT, **RECORD, "seed": 1})
    file = tmp_path / "answer.json"

    def replayed(change):
        changed = json.loads(json.dumps(whole))
        record = changed["diffusion"]["record"]
        change(record, record["choices"][0])
        file.write_text(json.dumps(changed))
        result = replay(file, "--url", demo_server.url)
        assert result.returncode == 1
        return result

    def other_token(_record, choice):
        choice["blocks"][1]["token_ids"][3] = 7

    def more_steps(_record, choice):
        choice["blocks"][1]["denoising_steps"] += 1

    def longer(_record, choice):
        choice["blocks"].append({"token_ids": [7], "denoising_steps": 1})

    def other_prompt(_record, choice):
        choice["prompt_token_ids"][2] = 7

    def other_end(_record, choice):
        choice["finish_reason"] = "length"

    (block, second) = whole["diffusion"]["record"]["choices"][0]["blocks"]
    at, token = len(block["token_ids"]) + 3, second["token_ids"][3]
    expected = f"choice 0: token {at}, in block 1, was 7 and is {token} now\n"
    assert replayed(other_token).stdout == expected
    assert "block 1 has the same tokens, but its number of steps" in replayed(more_steps).stdout
    assert ", in block 2, was 7 and is missing now" in replayed(longer).stdout
    assert "the prompt's token 2 was 7" in replayed(other_prompt).stdout
    assert "its finish reason was length" in replayed(other_end).stdout


def test_replay_says_that_the_model_is_another_one(demo_server, tmp_path):
    whole = answer(demo_server.http, CHAT, {**COUNT, **RECORD})
    whole["diffusion"]["record"]["fingerprint"] = "fp_0"
    file = tmp_path / "answer.json"
    file.write_text(json.dumps(whole))
    result = replay(file, "--url", demo_server.url)
    assert result.returncode == 0
    assert "the fingerprint was fp_0" in result.stderr


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, (), "can't be read"),
        ("{", (), "is no answer with a record"),
        ('{"diffusion": {"blocks": 1}}', (), "diffusion.record: Field required"),
        ("record", ("--url", "http://127.0.0.1:9"), "can't be reached"),
        ("record", ("--model", "/nowhere"), "the server does not start"),
        ("record", ("--url", "http://x", "--model", "demo"), "not allowed with --url"),
    ],
)
def test_replay_says_why_it_cannot_run(http, tmp_path, content, options, message):
    file = tmp_path / "answer.json"
    if content == "record":
        content = json.dumps(answer(http, CHAT, {**COUNT, **RECORD, "max_tokens": 1}))
    if content is not None:
        file.write_text(content)
    result = replay(file, *options)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
