"""A real Prometheus and promtool: what they say of the metrics, alerts and the dashboard's queries.

The queries' grammar and names are checked in test_monitoring.py, which needs no Prometheus.
"""

import json
import math
import re
from pathlib import Path

import pytest
import yaml

from tests.real_prometheus import ROOT, promtool, running_prometheus

DASHBOARD = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "easel.json").read_text())
QUERIES = [
    re.sub(r"\$__(rate_interval|range|interval)\b", "5m", target["expr"])
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]
# This one has a value only if a block was nearly done after a step, which depends on the model.
SPECULATIONS = (
    "sum(rate(easel_speculations_won_total[5m])) / sum(rate(easel_speculations_total[5m]))"
)
RULES, CASES = Path("docker/prometheus/alerts.yml"), Path("tests/docker/alerts_test.yml")


@pytest.fixture(scope="module")
def server(shared_server):
    """A server that no other file uses, so that it has served nothing but this file's requests."""
    return shared_server(
        EASEL_MODEL="demo", EASEL_SERVED_MODEL_NAME="scraped", EASEL_SPECULATE="true"
    )


def post(server, **options):
    body = {"messages": [{"role": "user", "content": "Count to 9"}], "max_tokens": 60, **options}
    return server.http.post("/v1/chat/completions", json=body)


@pytest.fixture(scope="module")
def scraped(server, tmp_path_factory):
    """A Prometheus that has scraped the server before and after three answers and two errors.

    Yields it and the answers.
    """
    # A series that has no value before the first scrape begins without an increase.
    answers = [post(server, seed=0).raise_for_status().json()]
    assert post(server, colour="red").status_code == 400
    folder = tmp_path_factory.mktemp("prometheus")
    with running_prometheus(server.url.removeprefix("http://"), folder) as prometheus:
        prometheus.wait_for_scrapes(1)
        answers += [post(server, seed=seed).raise_for_status().json() for seed in (1, 2)]
        assert post(server, colour="red").status_code == 400
        server.wait_until_idle()
        prometheus.wait_for_scrapes(2)
        yield prometheus, answers


def test_the_target_is_up(scraped, server):
    prometheus, _ = scraped
    (target,) = prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert target["scrapeUrl"] == f"{server.url}/metrics"
    assert target["labels"]["job"] == "easel"


def test_queries_return_what_was_served(scraped):
    prometheus, answers = scraped
    usages = [answer["usage"] for answer in answers]

    def total(query):
        return sum(value for _, value in prometheus.query(query))

    assert total('easel_requests_total{outcome="stop"}') == len(answers)
    assert total("easel_requests_total") == len(answers)
    assert total("easel_prompt_tokens_total") == sum(each["prompt_tokens"] for each in usages)
    assert total("easel_completion_tokens_total") == sum(
        each["completion_tokens"] for each in usages
    )
    assert total("easel_blocks_total") == sum(each["diffusion"]["blocks"] for each in answers)
    assert total('easel_error_responses_total{status="400",code="unknown_parameter"}') == 2
    assert total('easel_request_seconds_count{endpoint="/v1/chat/completions"}') == len(answers)
    ((model, up),) = prometheus.query("easel_model_info")
    assert (model["model"], up) == ("scraped", 1)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_of_the_dashboard_returns_data(scraped, query):
    prometheus, _ = scraped
    values = [value for _, value in prometheus.query(query)]
    assert any(math.isfinite(value) for value in values) or (SPECULATIONS in query and values)


def test_the_alerts_are_loaded_and_none_fires(scraped):
    prometheus, _ = scraped
    (group,) = prometheus.get("rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    assert [rule["name"] for rule in group["rules"] if rule["state"] != "inactive"] == []


def test_promtool_accepts_the_metrics(server):
    assert promtool("check", "metrics", text=server.http.get("/metrics").text) == ""


def test_promtool_accepts_the_rules_and_the_configuration():
    promtool("check", "rules", str(RULES))
    promtool("check", "config", "docker/prometheus/prometheus.yml")


def test_each_alert_fires_when_it_should_and_not_otherwise():
    promtool("test", "rules", str(CASES))
    cases = [
        (case["alertname"], bool(case.get("exp_alerts")))
        for test in yaml.safe_load((ROOT / CASES).read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    rules = [
        rule["alert"]
        for group in yaml.safe_load((ROOT / RULES).read_text())["groups"]
        for rule in group["rules"]
    ]
    assert set(cases) == {(name, fires) for name in rules for fires in (True, False)}
