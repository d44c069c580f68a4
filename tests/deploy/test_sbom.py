"""The list of parts, of this environment in an image's place."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
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


def test_packages_name_the_source_that_advisories_are_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = "Status: install ok installed\nArchitecture: amd64\n"
    (tmp_path / "status").write_text(
        f"Package: libssl3\n{status}Source: openssl\nVersion: 3.0.17-1~deb12u2\n\n"
        f"Package: libgcc-s1\n{status}Source: gcc-12 (12.2.0-14)\nVersion: 12.2.0-14+deb12u1\n\n"
        f"Package: sed\n{status}Version: 4.9-1\n\n"
    )
    found = importlib.util.spec_from_file_location("sbom", SCRIPT)
    assert found is not None
    assert found.loader is not None
    sbom = importlib.util.module_from_spec(found)
    found.loader.exec_module(sbom)
    monkeypatch.setattr(sbom, "DPKG", tmp_path / "status")
    parts = sbom.debian({"ID": "debian", "VERSION_ID": "12"})
    assert [part["purl"].partition("&distro=debian-12")[2] for part in parts] == [
        "&upstream=gcc-12%4012.2.0-14",
        "&upstream=openssl",
        "",
    ]


def test_it_lists_what_is_installed() -> None:
    found = {part.get("purl"): part for part in json.loads(parts())["components"]}
    for name in ("numpy", "huggingface-hub", "labelcurve"):
        assert f"pkg:pypi/{name}@{importlib.metadata.version(name)}" in found
    assert found[f"pkg:pypi/labelcurve@{importlib.metadata.version('labelcurve')}"]["licenses"] == [
        {"expression": "Apache-2.0"}
    ]
    if Path("/var/lib/dpkg/status").exists():
        assert any(purl and purl.startswith("pkg:deb/") for purl in found)
