import pytest
from pydantic import ValidationError

from app.settings import Settings, unknown_variables
from engine.config import EngineConfig


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"EASEL_{name.upper()}", raising=False)


def test_every_setting_has_a_default_and_help():
    assert Settings()
    assert all(field.description for field in Settings.model_fields.values())


def test_the_environment_overrides_defaults_and_options_override_the_environment(monkeypatch):
    monkeypatch.setenv("EASEL_PORT", "9000")
    assert Settings().port == 9000
    assert Settings(port=9001).port == 9001


def test_the_worker_gets_only_its_own_options(monkeypatch):
    monkeypatch.setenv("EASEL_MODEL", "/some/folder")
    monkeypatch.setenv("EASEL_PORT", "9000")
    assert Settings().engine_config() == EngineConfig(model="/some/folder")


def test_the_worker_gets_only_options_that_were_set_explicitly(monkeypatch):
    """A device profile sets the others. An option set to its default counts as explicit."""
    monkeypatch.setenv("EASEL_MAX_ACTIVE", "4")
    config = Settings(speculate="false", port=9000).engine_config()
    assert config.model_fields_set == {"max_active", "speculate"}
    sent = EngineConfig.model_validate_json(config.model_dump_json(exclude_unset=True))
    assert sent.model_fields_set == {"max_active", "speculate"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("profile", "rtx-9090"), ("port", -1), ("port", "many"), ("device", "tpu"), ("colour", "red")],
)
def test_the_error_about_a_wrong_value_names_its_setting(name, value):
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})


def test_settings_do_not_change_after_the_start():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


def test_a_misspelt_variable_is_reported(monkeypatch):
    monkeypatch.setenv("EASEL_PROT", "9000")
    assert unknown_variables() == ["EASEL_PROT"]


def test_an_empty_path_is_no_path(monkeypatch):
    monkeypatch.setenv("EASEL_API_KEY_FILE", "")
    monkeypatch.setenv("EASEL_CHAT_TEMPLATE", "")
    assert (Settings().api_key_file, Settings().chat_template) == (None, None)
