"""The choice of a profile, the options that it sets, and the figures in the profiles' texts."""

import pytest
from pydantic import ValidationError

from bench.roofline import released
from engine.config import (
    CONFIGS,
    DEMO_MODEL_PATH,
    DeviceProfile,
    EngineConfig,
    Formats,
    profile_names,
)
from engine.sizing.dimensions import RELEASED_MODEL, read_dimensions
from engine.sizing.gpu import Gpu
from engine.sizing.model_files import ModelFiles
from engine.sizing.plan import make_plan
from engine.sizing.profiles import apply_profile, choose_profile, describe_profile
from engine.sizing.roofline import device_step_s, step_cost
from engine.sizing.weight_files import with_files

GIB = 2**30
DEVICES = [name for name in profile_names() if DeviceProfile.read(name).hardware]


def config(**options):
    return EngineConfig(model=RELEASED_MODEL, **options)


def test_the_demo_model_and_each_supported_device_have_a_profile():
    devices = {"rtx-4090", "rtx-5090", "rtx-pro-6000", "dgx-spark", "dgx-station", "h100", "h200"}
    assert set(profile_names()) == {"demo", *devices}


@pytest.mark.parametrize(
    ("name", "gib", "profile"),
    [
        ("NVIDIA GeForce RTX 4090", 23.6, "rtx-4090"),
        ("NVIDIA GeForce RTX 5090", 31.4, "rtx-5090"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 95.0, "rtx-pro-6000"),
        ("NVIDIA GB10", 119.6, "dgx-spark"),
        ("NVIDIA GB300", 250, "dgx-station"),
        ("NVIDIA H100 80GB HBM3", 79.2, "h100"),
        ("NVIDIA H200", 139.8, "h200"),
        ("NVIDIA GH200 480GB", 94.5, "h100"),
        # No profile is made for these, but they have the memory of a profile.
        ("NVIDIA GeForce RTX 3090", 23.6, "rtx-4090"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "h100"),
        ("NVIDIA B200", 178, "h200"),
        # These have the name of a profile's device, but less memory than any profile.
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7, "none"),
        ("NVIDIA H100 80GB HBM3 MIG 2g.20gb", 19.5, "none"),
    ],
)
def test_a_profile_is_chosen_by_the_gpu_name_and_memory(name, gib, profile):
    assert choose_profile(config(), Gpu(name, round(gib * GIB))) == profile


def test_the_demo_model_has_its_own_profile_on_every_device():
    h100 = Gpu("NVIDIA H100 80GB HBM3", 79 * GIB)
    assert {choose_profile(EngineConfig(), gpu) for gpu in (None, h100)} == {"demo"}


def test_without_a_gpu_another_model_has_no_profile():
    assert choose_profile(config(), None) == "none"


@pytest.mark.parametrize("name", ["none", "rtx-4090"])
def test_a_profile_that_is_set_explicitly_is_used(name):
    gpu = Gpu("NVIDIA H100 80GB HBM3", 79 * GIB)
    assert choose_profile(config(profile=name), gpu) == name


def test_an_unknown_profile_is_refused_with_a_list_of_all_profiles():
    message = r"'rtx-9090' is not a profile.*auto, none, demo.*h100"
    with pytest.raises(ValidationError, match=message):
        EngineConfig(profile="rtx-9090")


def test_an_explicit_option_overrides_the_profile_even_with_the_default_value():
    explicit = config(max_active=4, speculate=False)
    applied = apply_profile(explicit, "h100", quantized=False)
    assert (applied.max_active, applied.speculate) == (4, False)
    assert applied.quantize_experts == "int8"
    assert applied.early_end == EngineConfig().early_end  # no profile sets this
    assert apply_profile(explicit, "none", quantized=False) == explicit


def test_a_profile_may_name_a_quality_and_no_profile_that_comes_with_easel_does():
    values = DeviceProfile.read("h100").model_dump()
    values["settings"]["quality"] = "fast"
    assert DeviceProfile.model_validate(values).settings.quality == "fast"
    for name in profile_names():
        assert DeviceProfile.read(name).settings.quality == "exact"


def test_a_description_lists_the_profile_values_and_the_explicit_options():
    assert describe_profile(config(), "none", quantized=False) == "none"
    text = describe_profile(config(max_active=2), "rtx-4090", quantized=False)
    assert text.startswith("rtx-4090: quantize_experts int4, quantize_linears int8, ")
    assert text.endswith(" (set explicitly: max_active)")
    assert "max_active 1" not in text


def test_a_profile_does_not_quantise_a_quantised_checkpoint():
    applied = apply_profile(config(), "h100", quantized=True)
    assert (applied.quantize_experts, applied.quantize_linears) == ("none", "none")
    assert applied.max_active == 3
    assert "quantize" not in describe_profile(config(), "h100", quantized=True)


@pytest.mark.parametrize(
    ("line", "key"), [("colour = 'red'", "colour"), ("max_context = 'long'", "max_context")]
)
def test_a_profile_with_an_unknown_key_or_a_wrong_value_is_refused(
    tmp_path, monkeypatch, line, key
):
    good = (CONFIGS / "profiles" / "h100.toml").read_text()
    lines = [each for each in good.splitlines() if not each.startswith(f"{key} =")]
    (tmp_path / "profiles").mkdir()
    changed = "\n".join(lines).replace("[settings]", f"[settings]\n{line}")
    (tmp_path / "profiles" / "bad.toml").write_text(changed)
    monkeypatch.setattr("engine.config.CONFIGS", tmp_path)
    with pytest.raises(ValidationError, match=key):
        DeviceProfile.read("bad")


@pytest.mark.parametrize("name", DEVICES)
def test_the_released_model_fits_each_device_with_the_profile_of_the_device(name):
    hardware = DeviceProfile.read(name).hardware
    plan = make_plan(released(), apply_profile(config(), name, quantized=False), cuda=True)
    assert plan.total <= hardware.usable_bytes


def test_the_demo_profile_fits_any_device():
    demo = read_dimensions(DEMO_MODEL_PATH / "config.json")
    dimensions = with_files(demo, ModelFiles(str(DEMO_MODEL_PATH)))
    plan = make_plan(dimensions, apply_profile(EngineConfig(), "demo", quantized=False), cuda=False)
    assert plan.total < GIB
    assert plan.context_tokens == dimensions.max_positions


def times(name):
    """Returns the milliseconds of steps with the rows of 1, 2, 3 and 4 canvases."""
    profile = DeviceProfile.read(name)
    formats = Formats(profile.settings.quantize_experts, profile.settings.quantize_linears)
    cost = step_cost(released(), formats, context=8192)
    return [1e3 * device_step_s(cost, profile.hardware, canvases) for canvases in (1, 2, 3, 4)]


@pytest.mark.parametrize("name", DEVICES)
def test_a_profile_has_as_many_canvases_as_cost_little_time(name):
    one, *more = times(name)
    cheap = 1 + sum(each < 1.2 * one for each in more)
    assert DeviceProfile.read(name).settings.max_active == cheap


@pytest.mark.parametrize("name", DEVICES)
def test_a_profile_speculates_if_that_costs_less_than_half_of_the_saved_step(name):
    one, _, three, _ = times(name)
    assert DeviceProfile.read(name).settings.speculate == (three - one < 0.5 * one)


@pytest.mark.parametrize("name", DEVICES)
def test_the_reasons_of_a_profile_quote_the_roofline_figures(name):
    why = DeviceProfile.read(name).why
    one, two, three, four = (f"{each:.3g}" for each in times(name))
    one_canvas = DeviceProfile.read(name).settings.max_active == 1
    assert f"{one} ms a step" in why.format or f"takes {one} ms" in why.format
    assert all(each in why.batch for each in ((two,) if one_canvas else (one, three, four)))
    assert one in why.speculation
    assert three in why.speculation
