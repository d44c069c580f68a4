"""The list of parts, of this environment in an image's place."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

SCRIPT = Path(__file__).parents[2] / "scripts/sbom.py"


def parts() -> str:
    with SCRIPT.open() as script:
        return subprocess.run(
            [sys.executable, "-"], stdin=script, capture_output=True, text=True, check=True
        ).stdout


def test_it_is_cyclonedx_and_the_same_each_time() -> None:
    document = parts()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document) is None
    assert parts() == document


def test_the_schema_is_really_asked() -> None:
    document = json.loads(parts())
    document["components"][0]["type"] = "no such type"
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(json.dumps(document)) is not None


def test_it_lists_what_is_installed() -> None:
    found = {part.get("purl"): part for part in json.loads(parts())["components"]}
    for name in ("numpy", "huggingface-hub", "labelcurve"):
        assert f"pkg:pypi/{name}@{importlib.metadata.version(name)}" in found
    assert found[f"pkg:pypi/labelcurve@{importlib.metadata.version('labelcurve')}"]["licenses"] == [
        {"expression": "Apache-2.0"}
    ]
    if Path("/var/lib/dpkg/status").exists():
        assert any(purl and purl.startswith("pkg:deb/") for purl in found)
