import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

from app.prompting.model_files import model_file, optional_model_file


def test_a_file_may_be_missing_in_a_folder(tmp_path):
    (tmp_path / "there").touch()
    assert optional_model_file(str(tmp_path), "there") == tmp_path / "there"
    assert optional_model_file(str(tmp_path), "elsewhere") is None
    assert model_file(str(tmp_path), "elsewhere") == tmp_path / "elsewhere"


@pytest.fixture
def hub(monkeypatch):
    """Returns a function that makes the hub's client raise an error, online or offline."""

    def answer(error, *, offline=False):
        def download(_model, _name):
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: offline)

    return answer


def missing():
    return RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)


def test_a_file_that_the_hub_does_not_have_is_missing(hub):
    hub(missing())
    assert optional_model_file("owner/name", "x.json") is None


def test_an_unreachable_hub_is_an_error_and_not_a_missing_file(hub):
    hub(LocalEntryNotFoundError("no network"))
    with pytest.raises(OSError, match="no network"):
        optional_model_file("owner/name", "x.json")


def test_a_file_that_was_not_downloaded_is_missing_offline(hub):
    hub(LocalEntryNotFoundError("offline"), offline=True)
    assert optional_model_file("owner/name", "x.json") is None
