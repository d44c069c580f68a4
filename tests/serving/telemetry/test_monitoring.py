"""deploy/prometheus and deploy/grafana against what a running service exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from labelcurve.serving.telemetry import metrics
from tests.models import digit_png

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus/rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana/labelcurve.json").read_text())
    return found


def expressions() -> list[str]:
    panels = dashboard()["panels"]
    variables = [v["definition"] for v in dashboard()["templating"]["list"] if "definition" in v]
    shown = [target["expr"] for panel in panels for target in panel["targets"]]
    return [alert["expr"] for alert in alerts()] + shown + variables


def exported(client: httpx.Client) -> dict[str, set[str]]:
    """The labels of each sample that a service exports: what it did so far, and what it could."""
    client.post("/classify", content=digit_png(0))
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (described,) = list(metric.describe())
            names = [described.name]
            if described.type == "counter":
                names = [f"{described.name}_total"]
            elif described.type == "histogram":
                names = [f"{described.name}_{part}" for part in ("bucket", "sum", "count")]
            for name in names:
                found.setdefault(name, set()).update(metric._labelnames)
    return found


def test_alerts_and_panels_ask_for_what_is_exported(client: httpx.Client) -> None:
    known = exported(client) | {"up": set()}
    asked = set()
    for expression in expressions():
        assert "labelcurve" in expression or "bentoml" in expression or "up{" in expression
        for name, matchers in re.findall(
            r"\b((?:bentoml|labelcurve)_\w+|up)\b(?:\{([^}]*)\})?", expression
        ):
            asked.add(name)
            assert name in known, f"{name} is not exported: {expression}"
            labels = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', matchers))
            assert labels <= known[name] | SCRAPED, f"{name} has no label {labels - known[name]}"
        by = {
            label.strip()
            for group in re.findall(r"\bby \(([^)]*)\)", expression)
            for label in group.split(",")
        }
        assert by <= SCRAPED.union(*known.values()), expression
    assert len(asked) >= 8


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    text = "\n".join(expressions())
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            name = next(iter(metric.describe())).name
            assert name in text or not name.startswith("labelcurve_"), metric


def test_panels_have_a_title_a_description_and_their_place() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"]
        assert panel["description"]
        place = panel["gridPos"]
        cells = {
            (place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", "rules.yaml"],
        ["check", "config", "prometheus.yaml"],
        ["test", "rules", "rules.test.yaml"],
    ],
)
def test_promtool_is_content(arguments: list[str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("NO PROMTOOL HERE (Debian's package prometheus): the alerts were not tried")
    folder = DEPLOY / "prometheus"
    done = subprocess.run([promtool, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_try_and_a_remedy() -> None:
    tried = (DEPLOY / "prometheus/rules.test.yaml").read_text()
    operating = (ROOT / "docs/operating.md").read_text()
    for alert in alerts():
        assert f"alertname: {alert['alert']}\n        exp_alerts:\n          - " in tried
        assert f"| `{alert['alert']}` |" in operating
