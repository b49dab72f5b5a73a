"""The dashboard that Grafana loads."""

import json
import re
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.knative.test_alerts import FOREIGN, others_in

pytestmark = pytest.mark.no_service

DASHBOARD: dict[str, Any] = json.loads(
    (ROOT / "knative" / "components" / "monitoring" / "dashboard.json").read_text("utf-8")
)
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = {target["expr"] for panel in PANELS for target in panel["targets"]}
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}


def test_the_panels_are_of_the_current_grafana() -> None:
    assert DASHBOARD["schemaVersion"] >= 41
    assert {panel["type"] for panel in PANELS} == {"timeseries", "stat"}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_no_two_panels_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


def test_the_reader_chooses_where_and_which_function() -> None:
    assert list(VARIABLES) == ["datasource", "environment", "function"]
    for panel in PANELS:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all("$environment" in target["expr"] for target in panel["targets"]), panel["title"]
    assert any("$function" in query for query in QUERIES)


def test_panels_ask_for_metrics_that_there_are() -> None:
    assert others_in(re.sub(r"\$\w+", "x", query) for query in QUERIES) <= FOREIGN | OF_OTHERS


OF_OTHERS = {
    "ALERTS",
    "kn_revision_concurrency_stable",
    "kn_revision_concurrency_target",
    "kn_revision_panic_mode",
    "process_resident_memory_bytes",
}
"""Metrics of Prometheus, of Knative Serving 1.21, and of prometheus_client."""
