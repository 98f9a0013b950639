"""A checkpoint's files in folders and on the hub, for which a local server stands."""

import pytest

from engine.sizing.model_files import ModelFiles, ModelFilesError, read_json
from tests.hub import use_hub

NAME = "owner/name"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with use_hub(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text('{"version": 1}')
    return folder


def test_a_file_may_be_missing_in_a_folder(tmp_path):
    (tmp_path / "there").touch()
    files = ModelFiles(str(tmp_path))
    assert files.file("there") == files.optional_file("there") == tmp_path / "there"
    assert files.optional_file("elsewhere") is None
    with pytest.raises(ModelFilesError, match="elsewhere is missing"):
        files.file("elsewhere")


def test_a_revision_of_a_folder_is_refused(tmp_path):
    with pytest.raises(ModelFilesError, match=r"revision is 'v1', but model '.*' is a folder"):
        ModelFiles(str(tmp_path), "v1")


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "nowhere"])
def test_a_model_that_is_nowhere_is_refused(model):
    with pytest.raises(ModelFilesError, match=f"model '{model}': there is no such folder"):
        ModelFiles(model)


def test_the_hub_is_asked_only_for_files_that_it_lists(hub, folder):
    hub.add(NAME, folder)
    files = ModelFiles(NAME)
    assert files.sizes == {"config.json": 14}
    assert files.has("config.json")
    assert files.optional_file("x.json") is None
    assert not files.has("x.json")
    assert files.json("config.json") == {"version": 1}
    assert hub.downloaded() == {"config.json"}
    assert not any("x.json" in path for _, path in hub.requests)


def test_a_file_is_looked_for_on_the_hub_if_its_list_of_files_is_not_known(hub, folder):
    hub.add(NAME, folder)
    hub.broken = "tree"
    files = ModelFiles(NAME)
    assert files.sizes is None
    assert files.has("config.json")
    assert not files.has("x.json")


def test_a_branch_a_tag_and_a_commit_are_revisions(hub, folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"version": 2}')
    hub.add(NAME, folder)
    commit = hub.add(NAME, other, "v2")
    assert ModelFiles(NAME).json("config.json") == {"version": 1}
    for revision in ("v2", commit):
        files = ModelFiles(NAME, revision)
        assert files.commit == commit
        assert files.json("config.json") == {"version": 2}
        assert (files.download(["*.json"]) / "config.json").read_text() == '{"version": 2}'


def test_all_files_come_from_one_commit_though_the_branch_moves(hub, folder, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text('{"version": 1}')
        (moved / name).write_text('{"version": 2}')
    hub.add(NAME, folder)
    files = ModelFiles(NAME)
    assert files.json("config.json") == {"version": 1}
    hub.add(NAME, moved)
    assert files.json("tokenizer.json") == {"version": 1}
    assert ModelFiles(NAME).json("tokenizer.json") == {"version": 2}


@pytest.mark.parametrize(
    ("model", "revision", "reason"),
    [
        ("owner/other", "", "model 'owner/other': there is no such folder, and the hub does not"),
        (NAME, "v9", "model 'owner/name': the hub has no revision 'v9' of it"),
    ],
)
def test_what_the_hub_does_not_have_is_named_in_one_line(hub, folder, model, revision, reason):
    hub.add(NAME, folder)
    with pytest.raises(ModelFilesError) as caught:
        ModelFiles(model, revision).file("config.json")
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_is_an_error_and_not_a_missing_file(monkeypatch, tmp_path):
    with use_hub(monkeypatch, tmp_path) as hub:
        pass
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelFilesError, match=r"the hub can't be reached \(.*refused") as caught:
        ModelFiles(NAME).optional_file("x.json")
    assert "`hf download owner/name --local-dir FOLDER`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_downloaded_files_are_read_offline_and_others_count_as_missing(hub, folder, monkeypatch):
    hub.add(NAME, folder)
    ModelFiles(NAME).download(["*"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    requests = len(hub.requests)
    files = ModelFiles(NAME)
    assert files.json("config.json") == {"version": 1}
    assert files.optional_file("x.json") is None
    assert files.sizes == {"config.json": 14}
    assert len(hub.requests) == requests


def test_a_downloaded_model_without_a_list_of_its_files_is_read_without_the_hub(
    folder, monkeypatch, tmp_path
):
    with use_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.add(NAME, folder)
        ModelFiles(NAME).file("config.json")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda _: None)  # the hub's client waits before it retries
    files = ModelFiles(NAME)
    assert files.sizes is None
    files.refuse_adapter()
    assert files.json("config.json") == {"version": 1}
    assert files.has("config.json")
    assert not files.has("x.json")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (POINTER, "is a git-lfs pointer and not the file itself: run `git lfs pull`"),
        (b"", "is not JSON: .*Download it again"),
        (b'{"a": 1', "is not JSON: .*Download it again"),
        (b"\xff\xfe\xff", "is not JSON: .*Download it again"),
        (b"[" * 100_000, "is not JSON: .*Download it again"),
        (b"[1]", "holds a list instead of a JSON object"),
        (None, "No such file"),
    ],
)
def test_a_damaged_json_file_is_named_with_its_fault(tmp_path, data, reason):
    file = tmp_path / "config.json"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ModelFilesError, match=rf"config\.json:? {reason}") as caught:
        read_json(file)
    assert "\n" not in str(caught.value)


ADAPTER = '{"peft_type": "LORA", "base_model_name_or_path": "google/some-model"}'


def test_an_adapter_beside_weights_is_refused(folder):
    (folder / "adapter_config.json").write_text(ADAPTER)
    with pytest.raises(ModelFilesError, match=r"adapter for 'google/some-model'.*merge_and_unload"):
        ModelFiles(str(folder)).refuse_adapter()


def test_a_folder_that_holds_only_an_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(ADAPTER)
    with pytest.raises(ModelFilesError, match="holds only an adapter for 'google/some-model'"):
        ModelFiles(str(tmp_path)).refuse_adapter()


def test_an_adapter_on_the_hub_is_refused_before_anything_else_is_downloaded(hub, folder):
    (folder / "adapter_config.json").write_text("{}")
    hub.add(NAME, folder)
    with pytest.raises(ModelFilesError, match="the configuration of an adapter"):
        ModelFiles(NAME).refuse_adapter()
    assert hub.downloaded() == {"adapter_config.json"}
