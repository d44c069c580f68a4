"""docs/operating.md against the code: every setting, metric and error, and no others."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import httpx
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from labelcurve.serving.connections import connection
from labelcurve.serving.settings import Settings
from labelcurve.serving.telemetry import metrics
from labelcurve.serving.web import openapi
from tests.models import digit_png

DOCUMENT = (Path(__file__).parents[2] / "docs/operating.md").read_text()


def rows(heading: str) -> dict[str, str]:
    """The first two cells of the rows of the first table below a heading."""
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| ([^|]+) \|([^|]*)\|", section, re.MULTILINE)
    return {first.strip("` "): second.strip("` ") for first, second in found[2:]}


def test_every_setting_is_there_with_its_default() -> None:
    expected = {
        f"--{field.name.replace('_', '-')}": "none" if field.default is None else str(field.default)
        for field in fields(Settings)
    }
    assert rows("Settings") == expected


def test_every_metric_is_there(client: httpx.Client) -> None:
    client.post("/classify", content=digit_png(0))
    found = [
        *text_string_to_metric_families(client.get("/metrics").text),
        *(
            f
            for m in vars(metrics).values()
            if isinstance(m, MetricWrapperBase)
            for f in m.describe()
        ),
    ]
    names = {f"{m.name}_total" if m.type == "counter" else m.name for m in found}
    assert set(rows("Metrics")) == names


def test_every_error_is_there() -> None:
    described = {
        status
        for methods in openapi.document()["paths"].values()
        for operation in methods.values()
        for status in operation["responses"]
        if status >= "400"
    }
    source = inspect.getsource(connection)
    early = set(re.findall(r"(?:_refuse\(|_interrupt\(|_fault = )(\d{3})\b", source))
    assert {"400", "503"} <= early
    assert set(rows("Errors")) == described | early | {"405", "500"}
    (metric,) = re.findall(
        r"^\| `labelcurve_connections_refused_total` .*$", DOCUMENT, re.MULTILINE
    )
    assert set(re.findall(r"\((\d{3})\)", metric)) == early
