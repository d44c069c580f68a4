"""The JSON Schema of report.json: `python -m benchmarks.schema` writes it beside this module."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.record import Report

PATH = Path(__file__).with_name("report.schema.json")


def text() -> str:
    """The schema (JSON Schema 2020-12), as it is committed."""
    return json.dumps(Report.model_json_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
    print(f"{PATH}: written")
