"""The published schema of report.json."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from labelcurve.benchmarks import compare, record
from labelcurve.benchmarks.record import Report
from labelcurve.bundle.errors import LabelcurveError

ROOT = Path(__file__).parent.parent.parent


def test_the_committed_schema_is_fresh() -> None:
    assert record.SCHEMA.read_text() == record.schema(), "run `python -m benchmarks.record`"


def test_a_report_follows_it(loaded: Report) -> None:
    found = json.loads(record.SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    document = json.loads(loaded.model_dump_json())
    jsonschema.validate(document, found)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "models": 3}, found)


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("docs/*/report.json"), ROOT / "benchmarks/results/cifar10.json"],
    ids=lambda path: path.parent.name,
)
def test_committed_reports_follow_it(path: Path) -> None:
    jsonschema.validate(json.loads(path.read_text()), json.loads(record.SCHEMA.read_text()))
    Report.model_validate_json(path.read_bytes())


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("accuracy", "right"), "?", "right: "),
        (("accuracy", "right"), b64encode(b"x").decode(), "right holds not 355 images"),
        (("accuracy", "n"), 300, "confusion has 355 images where n is 300"),
        (("accuracy", "accuracy"), 7.5, "less than or equal to 1"),
        (("accuracy", "accuracy"), 0.0, "confusion has not the 0 right answers"),
        (("accuracy", "loss"), float("nan"), "finite"),
        (("accuracy", "per_class"), {}, "has other classes than the data set"),
        (("latency", "batches"), [], "at least 1 item"),
        ((), [], "at least 1 item"),
    ],
)
def test_a_damaged_report_is_rejected(
    measured: Report, tmp_path: Path, where: tuple[str, ...], value: object, said: str
) -> None:
    document = json.loads(measured.model_dump_json())
    path = tmp_path / "report.json"
    path.write_text(json.dumps(document))
    assert compare.read(path) == measured
    part: Any = document["models"][0]
    if where:
        *outer, last = where
        for key in outer:
            part = part[key]
        part[last] = value
    else:
        document["models"] = value
    path.write_text(json.dumps(document))
    with pytest.raises(LabelcurveError, match=said) as caught:
        compare.read(path)
    assert str(path) in str(caught.value)
