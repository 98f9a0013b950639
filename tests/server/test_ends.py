"""How answers end: by end tokens, by padding, and by an error if no answer can be made."""

import json
import shutil

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from demo.easy_tasks import GREETING
from demo.tokenizer import END_OF_CALL, END_OF_TURN, SPECIAL_TOKENS
from engine.config import DEMO_MODEL_PATH
from tests.polling import wait_until

PADDING = SPECIAL_TOKENS["<pad>"]
PARIS = "What is the weather in Paris?"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def chat(server, text="hello", **options):
    body = {"messages": [{"role": "user", "content": text}], "seed": 0, **options}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def ended(response):
    """Returns the text of an answer, the reason of its end, and its number of tokens."""
    body = response.json()
    choice = body["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    return text, choice["finish_reason"], body["usage"]["completion_tokens"]


@pytest.fixture
def changed_demo(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL_PATH, folder)
    return folder


def test_chats_end_with_tokens_of_the_chat_format_that_the_checkpoint_does_not_name(
    start_server, demo_server, changed_demo
):
    file = changed_demo / "generation_config.json"
    values = json.loads(file.read_text())
    assert {END_OF_TURN, END_OF_CALL} < set(values["eos_token_id"])
    # Padding would end the answers too.
    changes = {"eos_token_id": 1, "pad_token_id": SPECIAL_TOKENS["<unk>"]}
    file.write_text(json.dumps({**values, **changes}))
    server = start_server(EASEL_MODEL=str(changed_demo)).wait_until_ready()
    expected = ended(chat(demo_server))
    assert ended(chat(server)) == expected
    assert expected[:2] == (GREETING, "stop")
    called = chat(server, PARIS, tools=[WEATHER]).json()["choices"][0]
    assert called["finish_reason"] == "tool_calls"
    # A raw completion has no chat format.
    messages = [{"role": "user", "content": "hello"}]
    prompt = httpx.post(f"{server.url}/tokenize", json={"messages": messages}).json()["tokens"]
    for own, reason in (([], "length"), ([END_OF_TURN], "stop")):
        body = {"prompt": prompt, "max_tokens": 64, "seed": 0, "stop_token_ids": own}
        response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        assert ended(response)[1] == reason


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_at_one_of_stop_token_ids_which_has_no_text(demo_server, stream):
    url, text = demo_server.url, "Count to 20"
    comma = httpx.post(f"{url}/tokenize", json={"prompt": "1, 2", "add_special_tokens": False})
    _, comma, *_ = comma.json()["tokens"]
    response = chat(demo_server, text, stop_token_ids=[comma, 5], stream=stream)
    if not stream:
        assert ended(response) == ("1", "stop", 2)
        return
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "1"
    assert choices[-1]["finish_reason"] == "stop"


def test_every_dialect_has_stop_token_ids(demo_server):
    messages = [{"role": "user", "content": "hello"}]
    plain = chat(demo_server).json()["choices"][0]["message"]["content"]
    body = {"prompt": plain, "add_special_tokens": False}
    first, second, *_ = httpx.post(f"{demo_server.url}/tokenize", json=body).json()["tokens"]
    own = {"stop_token_ids": [second], "seed": 0}
    with httpx.Client(base_url=demo_server.url, timeout=60) as http:
        response = http.post("/v1/responses", json={"input": "hello", **own}).json()
        body = {"model": "demo", "max_tokens": 50, "messages": messages, **own}
        message = http.post("/v1/messages", json=body).json()
        detokenized = http.post("/detokenize", json={"tokens": [first]}).json()["prompt"]
    assert response["output"][0]["content"][0]["text"] == detokenized
    assert response["status"] == "completed"
    assert message["content"][0]["text"] == detokenized
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)


def test_padding_ends_an_answer_and_is_neither_shown_nor_counted(demo_server):
    bias = {"logit_bias": {str(PADDING): 100}}
    assert ended(chat(demo_server, max_tokens=200, **bias)) == ("", "stop", 0)
    assert ended(chat(demo_server, max_tokens=50, ignore_eos=True, **bias)) == ("", "length", 50)
    stream = chat(demo_server, max_tokens=200, stream=True, **bias).text
    assert '"finish_reason": "stop"' in stream


def test_a_model_whose_outputs_are_not_finite_is_an_error_of_each_request(
    start_server, changed_demo
):
    file = changed_demo / "model.safetensors"
    tensors = load_file(file)
    tensors["model.decoder.norm.weight"][3] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    server = start_server(EASEL_MODEL=str(changed_demo)).wait_until_ready()
    for options in ({}, {"n": 3}, {"top_p": 0.5}, {"logprobs": True}):
        response = chat(server, **options)
        assert response.status_code == 500
        error = response.json()["error"]
        assert error["code"] == "outputs_not_finite"
        assert "not finite" in error["message"]
    *_, event, done = chat(server, stream=True).text.strip().split("\n\n")
    assert '"code": "outputs_not_finite"' in event
    assert done == "data: [DONE]"
    wait_until(lambda: "outcome=error" in server.log.read_text())
