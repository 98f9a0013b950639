"""docs/devices.md says what the profiles say."""

from pathlib import Path

import pytest

from bench.devices import markdown
from engine.config import DeviceProfile, profile_names

PAGE = (Path(__file__).parents[2] / "docs" / "devices.md").read_text()


def test_the_table_is_the_one_that_the_profiles_give():
    assert markdown() in PAGE


@pytest.mark.parametrize("name", profile_names())
def test_each_profile_s_reasons_are_told_as_they_stand_in_it(name):
    section = PAGE.split(f"## {name}\n")[1].split("\n## ")[0]
    for reason in DeviceProfile.read(name).why.model_dump().values():
        assert " ".join(reason.split()) in " ".join(section.split())


def test_every_setting_of_a_profile_is_named():
    for name in DeviceProfile.read("demo").settings.model_dump():
        assert f"`{name}`" in PAGE
