"""`easel plan`, run as a command."""

import json

import pytest
from typer.testing import CliRunner

from app import plan_report
from app.cli import main
from app.settings import Settings
from bench.random_model import Shape, write_random_model
from engine.config import DEMO_MODEL_PATH, DeviceProfile
from engine.sizing.dimensions import QUANTIZED_FILES, RELEASED_MODEL
from engine.sizing.gguf_header import read_tensors
from engine.sizing.gpu import Gpu
from engine.sizing.memory import available_ram_bytes
from tests.engine.weights.test_gguf_file import SHAPE, q8_0, write
from tests.hub import use_hub

GIB = 2**30
DEVICES = [name for name in plan_report.device_names() if name not in ("auto", "cpu")]


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch):
    """Hide the environment's settings, the GPU and the network."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"EASEL_{name.upper()}", raising=False)
    monkeypatch.setattr(plan_report, "first_gpu", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def run(*options):
    return CliRunner().invoke(main, ["plan", *options])


def plan_json(*options):
    result = run("--json", *options)
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


def test_the_demo_model_fits_this_machine():
    result = run()
    assert result.exit_code == 0
    assert "demo on this machine's CPU" in result.output
    assert "profile demo:" in result.output
    assert "It fits: " in result.output


@pytest.mark.parametrize("device", DEVICES)
def test_the_released_model_fits_each_device_with_its_profile_without_a_network(device):
    plan = plan_json("--model", RELEASED_MODEL, "--device", device)
    assert plan["fits"] is True
    assert plan["nearest"] is None
    assert plan["profile"] == device
    settings = DeviceProfile.read(device).settings.model_dump(exclude={"quality"})
    assert plan["settings"] == {**settings, "quantize_rest": "none"}
    assert plan["largest_context_tokens"] >= settings["max_context"]
    assert plan["most_canvases"] >= settings["max_active"]
    parts = ("kv", "activations", "graphs", "libraries", "prefix_cache")
    assert plan["total"] == sum(plan["weights"].values()) + sum(plan[part] for part in parts)
    assert plan["roofline_tokens_per_s"] == pytest.approx(15 / plan["roofline_step_s"])


def test_a_plan_that_does_not_fit_exits_with_1_and_shows_options_that_do():
    options = ["--model", RELEASED_MODEL, "--device", "rtx-4090", "--profile", "none"]
    result = run(*options)
    assert result.exit_code == 1
    assert "These options fit: --quantize-experts int4 --max-active 2" in result.output
    nearest = plan_json(*options)["nearest"]
    fitting = [f"--{name.replace('_', '-')}={value}" for name, value in nearest.items()]
    assert plan_json(*options, *fitting)["fits"] is True


def test_options_and_variables_override_the_profile(monkeypatch):
    monkeypatch.setenv("EASEL_MAX_ACTIVE", "2")
    plan = plan_json("--model", RELEASED_MODEL, "--device", "h100", "--max-context", "4096")
    assert plan["settings"]["max_active"] == 2
    assert plan["settings"]["max_context"] == 4096
    assert plan["settings"]["quantize_experts"] == "int8"


def test_a_model_in_a_folder_is_planned_from_its_configuration_alone(tmp_path):
    write_random_model(tmp_path, Shape())
    (tmp_path / "model.safetensors").unlink()
    plan = plan_json("--model", str(tmp_path), "--device", "cpu")
    assert plan["profile"] == "none"
    assert plan["context_tokens"] == 512
    assert plan["memory"] == pytest.approx(available_ram_bytes(), rel=0.5)


@pytest.fixture
def hub(monkeypatch, tmp_path, no_surroundings):
    with use_hub(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.mark.parametrize("name", QUANTIZED_FILES)
def test_a_quantised_model_on_the_hub_is_planned_from_its_sizes_there(hub, tmp_path, name):
    folder = write_random_model(tmp_path / "model", Shape())
    (folder / name).write_text("{}")
    (folder / "earlier.safetensors").write_bytes(b"no part of the model")
    hub.add("owner/name", folder)
    plan = plan_json("--model", "owner/name", "--device", "rtx-4090")
    assert plan["weights"] == {"as stored": (folder / "model.safetensors").stat().st_size}
    assert plan["settings"]["quantize_experts"] == "none"  # the profile has another value
    assert hub.downloaded() == {"config.json"}


def test_a_sharded_quantised_model_on_the_hub_is_planned_without_its_weights(hub, tmp_path):
    folder = write_random_model(tmp_path / "model", Shape())
    (folder / "hf_quant_config.json").write_text("{}")
    whole = (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "a.safetensors"}}')
    hub.add("owner/name", folder)
    assert plan_json("--model", "owner/name")["weights"] == {"as stored": whole.stat().st_size}
    assert hub.downloaded() == {"config.json", "model.safetensors.index.json"}


def test_a_quantised_model_whose_sizes_the_hub_does_not_tell_is_not_planned(hub, tmp_path):
    folder = write_random_model(tmp_path / "model", Shape())
    (folder / "w4_meta.json").write_text("{}")
    hub.add("owner/name", folder)
    hub.broken = "tree"
    result = run("--model", "owner/name")
    assert result.exit_code == 2
    assert "is quantised. Only its files say how large it is" in result.output


def test_a_revision_of_a_model_on_the_hub_is_planned(hub, tmp_path):
    small, large = (write_random_model(tmp_path / f"{n}", Shape(experts=n)) for n in (4, 8))
    hub.add("owner/name", small)
    commit = hub.add("owner/name", large, "more-experts")
    plans = [
        plan_json("--model", "owner/name", *revision)["weights"]["experts"]
        for revision in ([], ["--revision", "more-experts"], ["--revision", commit])
    ]
    assert plans[1] == plans[2] == 2 * plans[0]


def test_a_revision_of_the_released_model_is_read_from_the_hub(hub, tmp_path):
    hub.add(RELEASED_MODEL, write_random_model(tmp_path / "model", Shape()), "v2")
    plan = plan_json("--model", RELEASED_MODEL, "--revision", "v2", "--device", "cpu")
    assert plan["context_tokens"] == 512


def test_a_gguf_file_is_planned_from_its_header_alone(tmp_path):
    folder, file = write_random_model(tmp_path / "model", SHAPE), tmp_path / "model.gguf"
    write(file, folder, q8_0)
    options = ["--model", str(folder), "--gguf", str(file), "--device", "rtx-4090"]
    plan = plan_json(*options)
    stored = plan["weights"]["as stored"]
    assert 0.5 < stored / file.stat().st_size < 1.5
    assert plan["settings"]["quantize_experts"] == "none"  # the profile has another value
    file.write_bytes(file.read_bytes()[: read_tensors(file)[0].start])
    assert plan_json(*options) == plan


@pytest.mark.parametrize("first_bytes", [32 * 2**20, 1024])
def test_a_gguf_file_on_the_hub_is_planned_from_its_header_alone(
    hub, tmp_path, monkeypatch, first_bytes
):
    monkeypatch.setattr("engine.sizing.gguf_header._FIRST_BYTES", first_bytes)
    folder, file = write_random_model(tmp_path / "model", SHAPE), tmp_path / "gguf" / "model.gguf"
    file.parent.mkdir()
    write(file, folder, q8_0)
    commit = hub.add("owner/gguf", file.parent)
    options = ["--model", str(folder), "--device", "rtx-4090", "--gguf"]
    plan = plan_json(*options, str(file))
    assert plan_json(*options, "owner/gguf/model.gguf") == plan
    assert plan_json(*options, f"owner/gguf/model.gguf@{commit}") == plan
    assert not any((tmp_path / "cache").rglob("model.gguf"))


def test_a_gguf_file_on_the_hub_that_can_not_be_loaded_is_refused_before_it_is_downloaded(
    hub, tmp_path
):
    folder, file = write_random_model(tmp_path / "model", SHAPE), tmp_path / "gguf" / "model.gguf"
    file.parent.mkdir()
    write(file, folder, q8_0, architecture="gemma4")
    hub.add("owner/gguf", file.parent)
    result = run("--model", str(folder), "--gguf", "owner/gguf/model.gguf")
    assert result.exit_code == 2
    assert "general.architecture is 'gemma4'; supported" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--gguf", "some-body/some-model/file.gguf"], "so download it first"),
        (["--gguf", "/no/such/file.gguf"], "'/no/such/file.gguf' is not a file on this machine"),
        (["--gguf", __file__], "test_plan_report.py is not a GGUF file"),
        (["--device", "rtx-9090"], "allowed: auto, cpu, dgx-spark"),
        (["--device", "demo"], "device 'demo' is unknown"),
        (["--model", "/no/such/folder"], "model '/no/such/folder': there is no such folder"),
        (
            ["--model", "some-body/some-model"],
            "downloaded completely before, and HF_HUB_OFFLINE is set",
        ),
        (["--model", str(DEMO_MODEL_PATH), "--revision", "v1"], "revision is 'v1', but model"),
        (["--profile", "fast"], "'fast' is not a profile; available: auto, none"),
        (["--max-context", "many"], "EASEL_MAX_CONTEXT"),
    ],
)
def test_a_plan_that_cannot_be_made_exits_with_2_and_the_reason(options, named):
    result = run(*options)
    assert result.exit_code == 2
    assert named in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("gpu", "name", "memory_gib", "profile"),
    [
        (Gpu("NVIDIA H100 80GB HBM3", 80 * GIB), "NVIDIA H100 80GB HBM3", 79, "h100"),
        (Gpu("NVIDIA GeForce RTX 3090", 24 * GIB), "NVIDIA GeForce RTX 3090", 22.8, "rtx-4090"),
        (Gpu("NVIDIA GeForce RTX 3060", 12 * GIB), "NVIDIA GeForce RTX 3060", 11.4, "none"),
    ],
)
def test_auto_is_the_gpu_that_the_driver_reports(monkeypatch, gpu, name, memory_gib, profile):
    monkeypatch.setattr(plan_report, "first_gpu", lambda: gpu)
    plan = plan_json("--model", RELEASED_MODEL)
    assert (plan["device"], plan["profile"]) == (name, profile)
    assert plan["memory"] == pytest.approx(memory_gib * GIB)
    assert ("roofline_step_s" in plan) == (profile == "h100")
    monkeypatch.setenv("EASEL_DEVICE", "cpu")
    assert plan_json("--model", RELEASED_MODEL)["device"] == "this machine's CPU"
