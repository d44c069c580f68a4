"""The walls of the design: who may import whom, read from the source itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# bench reads the test images of `--data` through the data modules, which need no torch.
# These train or read images themselves: to time it, and to study the recipe.
TRAINS = {
    ROOT / "benchmarks" / f"{name}.py" for name in ("decoding", "speed", "streaming", "study")
}
# One runs the service's own parsing and decoding, in a process of its own, to fuzz it.
FUZZES = {ROOT / "benchmarks" / "guided.py"}
# The peers run in environments of their own.
PEERS = set((ROOT / "benchmarks" / "peers" / "apps").glob("*.py"))
ALLOWED = {
    "bundle": {"bundle"},
    "training": {"training", "bundle"},
    "serving": {"serving", "bundle"},
    "benchmarks": {"benchmarks", "bundle", "training.data", "training.source"},
}
FORBIDDEN_PACKAGES = {
    "bundle": {"torch", "torchvision", "bentoml", "onnxruntime", "sklearn"},
    "training": {"bentoml", "locust"},
    "serving": {"torch", "torchvision", "sklearn", "onnx", "locust"},
    "benchmarks": {"torch", "torchvision", "bentoml"},
}


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which wall they cross"
            module = node.module or ""
            inner = [f"{module}.{alias.name}" for alias in node.names]
            is_package = (ROOT / module.replace(".", "/") / "__init__.py").exists()
            found.update(inner if is_package else [module])
    return found


def modules(package: str) -> list[Path]:
    return sorted(set((ROOT / package).rglob("*.py")) - TRAINS - FUZZES - PEERS)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_what_its_wall_allows(package: str) -> None:
    assert len(modules(package)) > 1
    for path in modules(package):
        for name in imports(path):
            if name.split(".")[0] in ALLOWED:
                allowed = any(name == a or name.startswith(f"{a}.") for a in ALLOWED[package])
                assert allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("package", sorted(FORBIDDEN_PACKAGES))
def test_a_package_names_no_library_of_another_room(package: str) -> None:
    for path in modules(package):
        heads = {name.split(".")[0] for name in imports(path)}
        crossed = heads & FORBIDDEN_PACKAGES[package]
        assert not crossed, f"{path.relative_to(ROOT)} imports {crossed}"


@pytest.mark.parametrize(
    ("start", "forbidden"),
    [
        ("import bundle.store, bundle.preprocess", "torch"),
        ("import serving.service, serving.classify, serving.cli", "torch"),
        ("import serving.service", "tyro"),  # time and memory of every start
        ("import serving.cli", "numpy"),
        ("import training.cli", "torch"),
        ("import benchmarks.cli", "torch"),
        ("import training.cli", "bentoml"),
    ],
)
def test_importing_does_not_pull_in(start: str, forbidden: str) -> None:
    code = f"{start}; import sys; sys.exit({forbidden!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"{start} imports {forbidden}"
