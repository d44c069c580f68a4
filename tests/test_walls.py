"""The walls of the design: which packages may import which, checked on the source."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# bench reads the test images of `--data` through the data modules, which need no torch.
# These train or read images themselves: to time it, and to study the recipe.
TRAINS = {
    ROOT / "benchmarks" / f"{name}.py"
    for name in (
        "training_runs/decoding",
        "training_runs/distillation",
        "training_runs/photos",
        "training_runs/propagation",
        "training_runs/speed",
        "training_runs/streaming",
        "study/extractors",
        "study/notebook",
        "quality/audit",
        "study/run",
        "backtest/populations",
        "backtest/truth",
        "labelling/suggesting",
    )
}
# These run the service's own code in a separate process: to fuzz its parsing and decoding, and
# to replace its inference by sleep.
SERVES = {ROOT / "benchmarks/resilience" / name for name in ("guided.py", "sleeper.py")}
# The peers run in separate environments.
PEERS = set((ROOT / "benchmarks" / "peers" / "apps").glob("*.py"))
ALLOWED = {
    "bundle": {"bundle"},
    "training": {"training", "bundle"},
    "serving": {"serving", "bundle"},
    "benchmarks": {"benchmarks", "bundle", "training.data", "training.forecast"},
}
FORBIDDEN_PACKAGES = {
    "bundle": {"torch", "torchvision", "bentoml", "onnxruntime", "sklearn"},
    "training": {"bentoml", "locust"},
    "training/data": {"torch", "onnx", "onnxruntime", "tyro"},
    "serving": {"torch", "torchvision", "sklearn", "onnx", "locust"},
    "benchmarks": {"torch", "torchvision", "bentoml"},
}


def imports(path: Path, code: str | None = None) -> set[str]:
    """Dotted names of the modules that a file imports, at any depth, also in strings of code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text() if code is None else code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if "import " in node.value and code is None:
                with suppress(SyntaxError):
                    found |= imports(path, textwrap.dedent(node.value))
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name.removeprefix("labelcurve.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which wall they cross"
            module = node.module or ""
            assert module.split(".")[0] not in ALLOWED, f"{path}: import labelcurve.{module}"
            inner = [f"{module}.{alias.name}" for alias in node.names]
            is_package = (ROOT / module.replace(".", "/") / "__init__.py").exists()
            names = inner if is_package else [module]
            found.update(name.removeprefix("labelcurve.") for name in names)
    return found


def modules(package: str) -> list[Path]:
    return sorted(set((ROOT / package).rglob("*.py")) - TRAINS - SERVES - PEERS)


def test_strings_of_code_are_looked_into(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('CODE = """\n    import sys\n    from labelcurve.serving.cli import main\n"""')
    assert imports(path) == {"sys", "serving.cli"}
    path.write_text('"""What to import and what not is prose."""')
    assert imports(path) == set()


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
        ("import labelcurve.bundle.store, labelcurve.bundle.preprocess", "torch"),
        (
            "from labelcurve.serving import classify, cli, service",
            "torch",
        ),
        ("import labelcurve.serving.service", "tyro"),  # time and memory of every start
        ("import labelcurve.serving.cli", "numpy"),
        ("import labelcurve.training.cli", "torch"),
        ("from labelcurve.training.data import dataset, fractions", "torch"),
        ("from labelcurve.training.data import dataset, fractions", "pyarrow"),
        ("from labelcurve.training.data.formats import split_names", "numpy"),
        ("import labelcurve.benchmarks.cli", "torch"),
        ("import labelcurve.training.cli", "bentoml"),
    ],
)
def test_importing_does_not_pull_in(start: str, forbidden: str) -> None:
    code = f"{start}; import sys; sys.exit({forbidden!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"{start} imports {forbidden}"


def test_private_parts_of_bentoml_are_used_in_one_module() -> None:
    private = ("bentoml._internal", "_bentoml_impl", "_bentoml_sdk", "uvicorn.config")
    for path in sorted((ROOT / "serving").rglob("*.py")):
        if path != ROOT / "serving/workers/bento.py":
            found = {name for name in imports(path) if name.startswith(private)}
            assert not found, f"{path.relative_to(ROOT)} imports {found}"
            said = [word for word in private if word in path.read_text()]
            assert not said, f"{path.relative_to(ROOT)} names {said}"
