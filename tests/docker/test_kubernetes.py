"""The files for Kubernetes: valid, and in agreement with Easel's routes, metrics and image."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.metrics import Metrics
from app.routes import health
from app.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "kubernetes"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


DEPLOYMENT, *OTHERS = documents("easel.yaml")
POD = DEPLOYMENT["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
LABELS = POD["metadata"]["labels"]
VALUES = documents("picker-values.yaml")[0]["router"]
PICKER = yaml.safe_load(VALUES["epp"]["pluginsCustomConfig"][VALUES["epp"]["pluginsConfigFile"]])
ENVIRONMENT = {each["name"]: each.get("value") for each in CONTAINER["env"]}


@pytest.mark.parametrize("document", [DEPLOYMENT, *OTHERS], ids=lambda each: each["kind"])
def test_a_document_follows_the_schema_of_kubernetes(document):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_the_probes_ask_the_routes_of_health():
    paths = {route.path for route in health.router.routes}
    probes = [CONTAINER["livenessProbe"], CONTAINER["readinessProbe"]]
    assert {probe["httpGet"]["path"] for probe in probes} == {"/health/live", "/health/ready"}
    assert {probe["httpGet"]["path"] for probe in probes} <= paths


def test_answers_have_their_grace_before_a_pod_is_killed():
    before = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = int(ENVIRONMENT["EASEL_SHUTDOWN_GRACE_S"])
    assert POD["spec"]["terminationGracePeriodSeconds"] >= before + grace + 15


def test_every_variable_is_a_setting():
    own = {name.removeprefix(PREFIX).lower() for name in ENVIRONMENT if name.startswith(PREFIX)}
    assert own <= set(Settings.model_fields)


def test_a_pod_runs_as_the_user_of_the_image_and_has_its_port():
    dockerfile = (ROOT / "Dockerfile").read_text()
    user = POD["spec"]["securityContext"]["runAsUser"]
    assert f"USER {user}:{user}" in dockerfile
    (port,) = (each["containerPort"] for each in CONTAINER["ports"])
    assert f"EXPOSE {port}" in dockerfile
    assert VALUES["modelServers"]["targetPorts"] == [{"number": port}]


def test_only_the_mounted_folders_are_written():
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    assert {each["mountPath"] for each in CONTAINER["volumeMounts"]} == {"/cache", "/tmp"}


def test_the_pool_the_monitor_and_the_budget_select_the_pods():
    (monitor,) = documents("podmonitor.yaml")
    (budget,) = (each for each in OTHERS if each["kind"] == "PodDisruptionBudget")
    assert VALUES["modelServers"]["matchLabels"] == LABELS
    assert monitor["spec"]["selector"]["matchLabels"] == LABELS
    assert budget["spec"]["selector"]["matchLabels"] == LABELS
    assert LABELS[monitor["spec"]["jobLabel"]] == "easel"


def test_the_picker_reads_metrics_that_the_server_has():
    async def exposition() -> str:  # some metrics need a running event loop
        return Metrics().exposition().decode()

    gauges = set(re.findall(r"^# TYPE (\w+) gauge$", asyncio.run(exposition()), re.MULTILINE))
    (reads,) = (each for each in PICKER["plugins"] if each["type"] == "core-metrics-extractor")
    (engine,) = reads["parameters"]["engineConfigs"]
    assert engine["name"] == reads["parameters"]["defaultEngine"]
    named = {value for name, value in engine.items() if name.endswith("Spec") and value}
    assert len(named) == 3
    assert named <= gauges


def test_the_pickers_profile_uses_its_plugins():
    (profile,) = PICKER["schedulingProfiles"]
    used = {each["pluginRef"] for each in profile["plugins"]}
    assert used < {each["type"] for each in PICKER["plugins"]}


def test_the_route_waits_longer_than_an_answer_may_take():
    (rule,) = documents("route.yaml")[0]["spec"]["rules"]
    limit = Settings.model_fields["request_timeout_s"].default
    assert float(rule["timeouts"]["request"].removesuffix("s")) > limit
