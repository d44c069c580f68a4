"""The published schema of report.json."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from benchmarks import schema
from benchmarks.record import Report

ROOT = Path(__file__).parent.parent.parent


def test_the_committed_schema_is_fresh() -> None:
    assert schema.PATH.read_text() == schema.text(), "run `python -m benchmarks.schema`"


def test_a_report_follows_it(loaded: Report) -> None:
    found = json.loads(schema.PATH.read_text())
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
    jsonschema.validate(json.loads(path.read_text()), json.loads(schema.PATH.read_text()))
    Report.model_validate_json(path.read_bytes())
