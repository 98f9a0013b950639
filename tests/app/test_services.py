"""The names that requests may give the model."""

import pytest

from app.errors import ModelNotFound
from app.services import model_name
from app.settings import Settings

NAMES = ("demo", "owner/name", "openai/gpt")


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        (None, "demo"),
        ("demo", "demo"),
        ("openai/demo", "demo"),
        ("owner/name", "owner/name"),
        ("openai/owner/name", "owner/name"),
        ("openai/gpt", "openai/gpt"),
        ("openai/openai/gpt", "openai/gpt"),
    ],
)
def test_any_name_answers_also_behind_the_name_of_the_provider(wanted, name):
    assert model_name(wanted, NAMES) == name


@pytest.mark.parametrize(
    "wanted", ["", "name", "DEMO", "gpt", "anthropic/demo", "openai/openai/demo"]
)
def test_another_name_is_refused_with_the_names_that_are_served(wanted):
    with pytest.raises(ModelNotFound, match="'demo' or 'owner/name' or 'openai/gpt'") as caught:
        model_name(wanted, NAMES)
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ("demo",)),
        ({"model": "google/some-model"}, ("google/some-model",)),
        ({"model": "google/some-model", "served_model_name": "mine"}, ("mine",)),
        ({"served_model_name": " first,second , first,"}, ("first", "second")),
    ],
)
def test_names_are_those_of_the_setting_or_the_model_s_own(settings, names):
    assert Settings(**settings).model_names == names


@pytest.mark.parametrize("suffix", ["", "/", "/.", "/../folder"])
def test_a_folder_is_served_under_its_own_name(tmp_path, monkeypatch, suffix):
    (tmp_path / "folder").mkdir()
    assert Settings(model=f"{tmp_path}/folder{suffix}").model_names == ("folder",)
    monkeypatch.chdir(tmp_path / "folder")
    assert Settings(model=".").model_names == ("folder",)


def test_a_setting_without_a_name_is_refused():
    with pytest.raises(ValueError, match="served_model_name"):
        Settings(served_model_name=" , ")
