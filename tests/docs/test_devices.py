"""docs/devices.md agrees with the device profiles."""

from pathlib import Path

from bench.devices import reasons, table
from engine.config import DeviceProfile

PAGE = (Path(__file__).parents[2] / "docs" / "devices.md").read_text()


def test_the_table_is_the_one_generated_from_the_profiles():
    assert f"\n{table()}\n" in PAGE


def test_the_reasons_of_each_profile_are_copied_unchanged():
    assert PAGE.endswith(f"\n{reasons()}\n")


def test_every_setting_of_a_profile_is_named():
    for name in DeviceProfile.read("demo").settings.model_dump():
        assert f"`{name}`" in PAGE
