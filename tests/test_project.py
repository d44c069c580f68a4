"""The project's own files: the lock, the extras, the commands, the size of modules."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


@pytest.fixture(scope="module")
def lock() -> str:
    return (ROOT / "requirements.lock").read_text()


def needed(project: dict[str, Any], extra: str, platform: str) -> set[str]:
    requirements = map(Requirement, project["optional-dependencies"][extra])
    return {
        r.name
        for r in requirements
        if not r.marker or r.marker.evaluate({"sys_platform": platform})
    }


def test_the_lock_has_a_hash_for_each_package_and_no_address(lock: str) -> None:
    assert "://" not in lock
    packages = re.split(r"\n(?=\S)", lock.strip())
    assert len(packages) > 100
    for package in packages:
        assert re.match(r"[A-Za-z0-9._-]+==\S+", package), package[:80]
        assert "--hash=sha256:" in package, package[:80]


def test_the_lock_holds_every_direct_dependency(project: dict[str, Any], lock: str) -> None:
    locked = {line.split("==")[0] for line in lock.splitlines() if "==" in line and line[0] != " "}
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        assert requirement.name in locked
        assert any(s.operator in (">=", "==") for s in requirement.specifier), requirement


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("extra", ["train", "serve", "bench"])
def test_each_extra_has_exactly_one_onnxruntime(
    project: dict[str, Any], extra: str, platform: str
) -> None:
    found = needed(project, extra, platform) & {"onnxruntime", "onnxruntime-gpu"}
    assert found == {"onnxruntime-gpu" if platform == "linux" else "onnxruntime"}


def test_the_lock_never_installs_both_onnxruntimes_on_one_platform(lock: str) -> None:
    lines = [line for line in lock.splitlines() if line.startswith("onnxruntime")]
    markers = {line.split("==")[0]: line.split(";")[1].strip(" \\") for line in lines}
    assert markers == {
        "onnxruntime": "sys_platform == 'darwin'",
        "onnxruntime-gpu": "sys_platform == 'linux'",
    }


def test_serving_needs_no_torch_and_training_no_bentoml(project: dict[str, Any]) -> None:
    assert not needed(project, "serve", "linux") & {"torch", "torchvision", "scikit-learn", "onnx"}
    assert "bentoml" not in needed(project, "train", "linux")
    assert "bentoml" in needed(project, "serve", "linux")


@pytest.mark.parametrize("module", ["training.export", "serving.engine", "benchmarks.session"])
def test_onnxruntime_writes_no_device_id_and_reports_nothing(module: str, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | home
    code = f"import {module}, sys; assert 'onnxruntime' in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]


def test_ci_runs_the_readme_test_command() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


def test_no_module_is_above_20_kb() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.split()]
    assert files
    large = [str(path) for path in files if path.exists() and path.stat().st_size > 20_480]
    assert not large


def test_the_commands_in_the_environment_are_ours(project: dict[str, Any]) -> None:
    for name, place in project["scripts"].items():
        module, function = place.split(":")
        script = Path(sys.executable).with_name(name).read_text()
        assert f"from {module} import {function}" in script, name
