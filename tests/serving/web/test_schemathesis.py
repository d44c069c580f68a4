"""schemathesis over the OpenAPI document: requests that it allows, and requests that it forbids."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.serving.conftest import Service

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


def test_no_answer_is_unlike_the_document(service: Service, tmp_path: Path) -> None:
    report, config = tmp_path / "report.json", tmp_path / "schemathesis.toml"
    # Most names match no model, which ends a request before its body is read.
    config.write_text('[parameters]\n"query.model" = "digits-10"\n"path.name" = "digits-10"\n')
    schemathesis = [str(SCHEMATHESIS), "--config-file", str(config)]
    done = subprocess.run(
        [
            *(*schemathesis, "run", f"{service.url}/openapi.json"),
            # Answered by the same code as the paths without a version.
            *("--exclude-path-regex", "/versions/"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "20", "--seed", "1"),
            # A schema cannot say which bytes are an image: what it allows may be 415.
            *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
            *("--continue-on-failure", "--warnings", "off", "--no-color"),
            *("--report", "json", "--report-json-path", str(report)),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["test_cases"]["generated"] > 100
    accepted = [phase["accepted"] for phase in found["valid_rates"]["POST /classify"].values()]
    assert sum(accepted) > 0
    assert "Traceback" not in service.output
