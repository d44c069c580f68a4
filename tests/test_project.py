"""The project's own files: the lock, the extras, the commands, the size of modules."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests import conftest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


@pytest.fixture(scope="module", params=["requirements.lock", "requirements-cuda12.lock"])
def lock(request: pytest.FixtureRequest) -> str:
    return (ROOT / str(request.param)).read_text()


def pins(name: str) -> dict[str, str]:
    """Versions by package."""
    lines = (ROOT / name).read_text().splitlines()
    return dict(re.findall(r"^(\S+)==(\S+)", "\n".join(lines), re.MULTILINE))


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


def test_the_lock_for_older_drivers_differs_in_what_is_built_with_cuda_alone() -> None:
    found, older = pins("requirements.lock"), pins("requirements-cuda12.lock")
    differ = {name for name in found.keys() | older.keys() if found.get(name) != older.get(name)}
    assert {"torch", "torchvision", "triton", "onnxruntime-gpu"} < differ
    assert not [n for n in differ if not re.match(r"torch|triton|onnxruntime-gpu|nvidia-|cuda-", n)]
    assert not [n for n in older if n.endswith("-cu13")]


def test_the_oldest_versions_are_those_that_the_project_allows(project: dict[str, Any]) -> None:
    oldest = pins("requirements-lowest.txt")
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        here = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.11"}
        if requirement.marker and not requirement.marker.evaluate(here):
            continue
        least = next(s.version for s in requirement.specifier if s.operator == ">=")
        found = oldest[requirement.name]
        assert found == least or found.startswith(f"{least}."), f"{requirement}: {found}: make lock"


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


@pytest.mark.parametrize(
    "module",
    [
        "labelcurve.training.models.export",
        "labelcurve.serving.models.engine",
        "labelcurve.benchmarks.harness.session",
    ],
)
def test_onnxruntime_writes_no_device_id_and_reports_nothing(module: str, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | home
    code = f"import {module}, sys; assert 'onnxruntime' in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]


def test_ci_runs_the_readme_test_command() -> None:
    assert "\nmake test\nmake lowest\n" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


def test_no_module_is_above_20_kb() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.split()]
    assert files
    large = [str(path) for path in files if path.exists() and path.stat().st_size > 20_480]
    assert not large


def test_the_environment_gets_one_command_whose_name_collides_with_no_other(
    project: dict[str, Any],
) -> None:
    assert project["scripts"] == {"labelcurve": "labelcurve.__main__:main"}


LONGEST, MOST = 80, 8
"""Lines of a function, and its parameters (`self` and `cls` not counted)."""


def too_large(path: Path) -> set[str]:
    """Functions of a file that are too long, or have too many parameters."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        a = node.args
        names = [
            arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if arg
        ]
        n = len([name for name in names if name not in ("self", "cls")])
        lines = (node.end_lineno or 0) - node.lineno + 1
        if lines > LONGEST or n > MOST:
            found.add(f"{path.relative_to(ROOT)}:{node.name}")
    return found


def test_functions_fit_a_screen_and_have_few_parameters() -> None:
    packages = ("bundle", "training", "serving", "benchmarks")
    found = set().union(
        *(too_large(path) for package in packages for path in (ROOT / package).rglob("*.py"))
    )
    assert found == set()


def test_the_lists_of_long_and_slow_tests_name_files_that_exist() -> None:
    files = [
        path.relative_to(ROOT / "tests").as_posix() for path in ROOT.glob("tests/**/test_*.py")
    ]
    assert {f"{name}.py" for name in conftest.LONG} <= set(files)
    for name in conftest.SLOW:
        assert any(file.startswith(name) for file in files), name
