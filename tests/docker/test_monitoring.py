"""Prometheus' and Grafana's files: valid queries for metrics that the server has."""

import asyncio
import json
import re
from pathlib import Path
from typing import get_args

import promql_parser
import pytest
import yaml
from prometheus_client.metrics_core import Metric

from app.metrics import Metrics, Outcome

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "easel.json").read_text())
ALERTS = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())
PROMETHEUS = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
# Grafana replaces these variables by a duration. Any duration does for the grammar.
GRAFANA_DURATIONS = re.compile(r"\$__(rate_interval|range|interval)\b")


def dashboard_queries() -> list[str]:
    targets = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [GRAFANA_DURATIONS.sub("5m", target["expr"]) for target in targets]


def alert_queries() -> list[str]:
    return [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]


QUERIES = dashboard_queries() + alert_queries()


def exposed() -> set[str]:
    """Returns the name of every series that the server can have."""

    async def collected() -> list[Metric]:  # some metrics need a running event loop
        return list(Metrics().registry.collect())

    names = set()
    for family in asyncio.run(collected()):
        match family.type:
            case "counter":
                names.add(f"{family.name}_total")
            case "histogram":
                names |= {f"{family.name}_{end}" for end in ("bucket", "sum", "count")}
            case "gauge":
                names.add(family.name)
            case "info":
                names.add(f"{family.name}_info")
            case other:
                raise AssertionError(f"{family.name} is a {other}")
    return names


def requested(query: str) -> set[str]:
    return set(re.findall(r"\beasel_\w+", query))


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_follows_the_grammar_of_prometheus(query):
    assert promql_parser.parse(query)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_requests_metrics_that_the_server_has(query):
    assert requested(query) or re.search(r"\bup\b", query)
    assert requested(query) - exposed() == set()


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_names_only_outcomes_that_exist(query):
    outcomes = set(re.findall(r'outcome="(\w+)"', query))
    assert outcomes - set(get_args(Outcome)) == set()


def test_the_dashboard_shows_every_metric():
    shown = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for query in dashboard_queries()
        for name in requested(query)
    }
    existing = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed()}
    assert existing - shown == set()


def test_panels_have_their_own_numbers_and_do_not_overlap():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24  # the width of Grafana's grid


def test_prometheus_scrapes_the_server_at_its_address_in_compose():
    (job,) = PROMETHEUS["scrape_configs"]
    (static,) = job["static_configs"]
    (target,) = static["targets"]
    host, port = target.split(":")
    assert host in COMPOSE
    assert COMPOSE[host]["ports"][0].endswith(f":{port}")
    assert f'job="{job["job_name"]}"' in " ".join(QUERIES)
    assert (DOCKER / "prometheus" / PROMETHEUS["rule_files"][0]).is_file()


def test_every_alert_has_its_own_name_and_a_summary():
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    assert all(rule["annotations"]["summary"] for rule in rules)


def test_panels_query_the_data_source_that_is_provisioned():
    path = DOCKER / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (source,) = yaml.safe_load(path.read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == PROMETHEUS["global"]["scrape_interval"]
    queried = [panel["datasource"]["uid"] for panel in DASHBOARD["panels"]]
    assert set(queried) == {source["uid"]}


def test_the_dashboard_is_provisioned_where_compose_mounts_it():
    path = DOCKER / "grafana" / "provisioning" / "dashboards" / "easel.yml"
    (provider,) = yaml.safe_load(path.read_text())["providers"]
    folder = provider["options"]["path"]
    mounted = dict(each.split(":")[:2] for each in COMPOSE["grafana"]["volumes"])
    assert folder in mounted.values()
    environment = COMPOSE["grafana"]["environment"]
    assert environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{folder}/easel.json"
