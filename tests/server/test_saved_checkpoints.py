"""Checkpoints as people save them: served rightly, or refused in one line."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from tests.engine.sizing.test_model_files import ADAPTER, POINTER
from tests.hub import Hub, environment
from tests.polling import wait_until
from tests.server.test_start import easel


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "saved")


def change(folder, name, **changes):
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def template(folder):
    (folder / "chat_template.jinja").write_text("{% if %}")


def tokenizer(folder):
    (folder / "tokenizer.json").write_bytes(POINTER)


def adapter(folder):
    (folder / "adapter_config.json").write_text(ADAPTER)


def only_adapter(folder):
    for file in folder.iterdir():
        file.unlink()
    adapter(folder)


def cut_off(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def steps(folder):
    change(folder, "generation_config.json", max_denoising_steps=0, eos_token_id="1")


def head(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.decoder.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (template, "chat_template.jinja: the chat template 'default' does not compile: line 1:"),
        (tokenizer, "tokenizer.json is a git-lfs pointer and not the file itself"),
        (adapter, "adapter for 'google/some-model'. Adapters are not applied"),
        (only_adapter, "holds only an adapter for 'google/some-model' and no model"),
        (cut_off, "model.safetensors is cut off: it has"),
        (steps, "max_denoising_steps is 0: Input should be greater than or equal to 1; eos_token"),
        (head, "embed_tokens.weight differ, but they are one weight of the model"),
    ],
)
def test_the_last_line_says_why_a_checkpoint_cannot_be_served(folder, damage, named):
    damage(folder)
    code, lines = easel("serve", "--model", str(folder))
    assert code in (1, 2)
    assert named in lines[-1], lines


def test_a_prompt_with_a_token_that_the_model_lacks_is_a_400_that_names_it(start_server, folder):
    saved = json.loads((folder / "tokenizer.json").read_text())
    size = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    added = {**saved["added_tokens"][0], "id": size, "content": "zebra", "special": False}
    change(folder, "tokenizer.json", added_tokens=[*saved["added_tokens"], added])
    server = start_server(EASEL_MODEL=str(folder)).wait_until_ready()
    wait_until(
        lambda: (
            server.log.read_text().count(f"1 token that the model lacks, with ids from {size}") == 1
        )
    )
    turns = [{"role": "user", "content": "a zebra"}]
    for path, body, field in (
        ("/v1/chat/completions", {"messages": turns}, "messages"),
        ("/v1/completions", {"prompt": "a zebra"}, "prompt"),
        ("/v1/completions", {"prompt": "a", "suffix": "zebra", "max_tokens": 1}, "suffix"),
        ("/v1/responses", {"input": "a zebra"}, "input"),
        ("/v1/messages", {"model": "saved", "max_tokens": 1, "messages": turns}, "messages"),
    ):
        answer = server.http.post(path, json=body)
        assert answer.status_code == 400, answer.text
        message = answer.json()["error"]["message"]
        assert message.startswith(f"{field}: the model lacks the token 'zebra'"), message
        assert str(size) in message


def test_a_revision_is_that_of_all_files_and_of_every_worker(start_server, folder, tmp_path):
    """The repository's main branch holds nothing that could be served."""
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "config.json").write_text("{}")
    hub = Hub()
    hub.add("owner/name", tmp_path / "main")
    commit = hub.add("owner/name", folder, "v1")
    with hub.running():
        server = start_server(
            EASEL_MODEL="owner/name",
            EASEL_REVISION="v1",
            **environment(hub, tmp_path / "cache"),
        ).wait_until_ready()
        hub.add("owner/name", tmp_path / "main", "v1")  # the tag moves
        (model,) = server.http.get("/v1/models").json()["data"]
        assert model["id"] == "owner/name"
        server.kill_worker()
        wait_until(lambda: server.metrics()[("easel_worker_starts_total",)] == 2)
        server.wait_until_ready()
        ask = {"prompt": "x", "max_tokens": 1}
        assert server.http.post("/v1/completions", json=ask).status_code == 200
    revisions = {path.split("/")[4] for _, path in hub.requests if "/resolve/" in path}
    assert revisions == {commit}
    assert {"tokenizer.json", "config.json", "model.safetensors"} <= hub.downloaded()


def test_a_downloaded_model_is_served_without_a_network(start_server, folder, tmp_path):
    hub = Hub()
    hub.add("owner/name", folder)
    variables = {"EASEL_MODEL": "owner/name", **environment(hub, tmp_path / "cache")}
    with hub.running():
        start_server(**variables).wait_until_ready().stop()
    server = start_server(**variables).wait_until_ready()
    ask = {"prompt": "x", "max_tokens": 1}
    assert server.http.post("/v1/completions", json=ask).status_code == 200
    wait_until(lambda: server.log.read_text().count("Could not reach the Hub") == 1)
