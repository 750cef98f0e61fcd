"""The dashboard for Grafana asks for metrics that a service has, and has what Grafana's import needs."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from bincount.serving.metrics import Metrics

DASHBOARD = Path(__file__).parent.parent / "deployments" / "grafana" / "bincount.json"
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
OF_PROMETHEUS = {"job", "instance", "le"}  # labels that are not the service's own
NAME = r"\bbincount_\w+"


@pytest.fixture(scope="module")
def dashboard() -> dict:
    return json.loads(DASHBOARD.read_text())


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """The labels of every name that a service shows at /metrics."""
    metrics = Metrics()
    labels = {collector._name: set(collector._labelnames) for collector in metrics.registry._collector_to_names}
    return {
        family.name + suffix: labels[family.name]
        for family in metrics.registry.collect()
        for suffix in SUFFIXES[family.type]
    }


def queries(dashboard: dict) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (each["expr"] for each in dashboard["annotations"]["list"])
    yield from (each["definition"] for each in dashboard["templating"]["list"])


def test_every_metric_in_it_is_one_of_a_service_with_the_labels_that_it_asks_for(dashboard, known):
    for query in queries(dashboard):
        names = re.findall(NAME, query)
        assert names, query
        assert set(names) <= set(known), query
        labels = set().union(*(known[name] for name in names)) | OF_PROMETHEUS
        selected = set(re.findall(r"(\w+)(?:=~|!=|=)\"", query))
        grouped = {label.strip() for listed in re.findall(r"\bby \(([^)]*)\)", query) for label in listed.split(",")}
        assert selected | grouped <= labels, query


def test_every_label_in_a_legend_is_one_by_which_its_query_groups(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert re.search(rf"\bby \([^)]*\b{label}\b[^)]*\)", target["expr"]), target["expr"]


def test_every_metric_of_a_service_is_on_it(dashboard, known):
    shown = {
        re.sub("_(total|bucket|sum|count)$", "", name)
        for query in queries(dashboard)
        for name in re.findall(NAME, query)
    }
    assert shown == {re.sub("_(total|bucket|sum|count)$", "", name) for name in known}


def test_grafana_can_import_it_and_asks_for_the_source(dashboard):
    (source,) = dashboard["__inputs"]
    assert (source["type"], source["pluginId"]) == ("datasource", "prometheus")
    assert dashboard["id"] is None
    assert re.fullmatch("[a-z-]{1,40}", dashboard["uid"])
    assert dashboard["schemaVersion"] >= 36  # Grafana 9
    sources = {json.dumps(each["datasource"]) for each in dashboard["panels"] if each["type"] != "row"}
    assert sources == {json.dumps({"type": "prometheus", "uid": f"${{{source['name']}}}"})}
    panels = {each["id"] for each in dashboard["__requires"] if each["type"] == "panel"}
    assert {each["type"] for each in dashboard["panels"]} - {"row"} == panels


def test_panels_have_ids_of_their_own_and_do_not_overlap(dashboard):
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        {
            (column, row)
            for column in range(place["x"], place["x"] + place["w"])
            for row in range(place["y"], place["y"] + place["h"])
        }
        for place in (panel["gridPos"] for panel in panels)
    ]
    assert not [pair for pair in combinations(cells, 2) if pair[0] & pair[1]]
    assert all(column < 24 for each in cells for column, _ in each)


def test_all_parts_of_a_query_ask_for_the_chosen_services(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            for selector in re.findall(rf"{NAME}({{[^}}]*}})?", target["expr"]):
                assert 'job=~"$job", instance=~"$instance"' in selector, target["expr"]
