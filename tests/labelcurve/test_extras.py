"""A command whose extra is not installed says which one it is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.labelcurve.test_main import LABELCURVE

MISSING = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder())
"""
"""For the start of each process: as if these packages were not installed."""


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (["train", "--data", "digits"], "torch", "train"),
        (["pretrain", "--data", "digits"], "torch", "train"),
        (["quantize"], "onnxruntime", "train"),
        (["serve"], "circus", "serve"),
        (["serve", "--self-test"], "onnxruntime", "serve"),
        (["classify", "a.png"], "onnxruntime", "serve"),
        (["api-key", "me"], "starlette", "serve"),
        (["bench"], "httpx", "bench"),
        (["bench", "peers"], "httpx", "bench"),
        (["train"], "labelcurve.training", "train"),
        (["serve"], "labelcurve.serving", "serve"),
    ],
)
def test_a_missing_extra_is_named(
    arguments: list[str], package: str, extra: str, tmp_path: Path, digits_models: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"MISSING = {{{package!r}}}\n{MISSING}")
    models = ["--models", str(digits_models)]
    if arguments[0] in ("serve", "classify", "bench", "quantize") and "." not in package:
        arguments = [*arguments, *models]
    done = subprocess.run(
        [LABELCURVE, *arguments],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stderr == (
        f"error: this needs {package}, which is not installed: it comes with the extra "
        f"`{extra}`, pip install 'labelcurve[{extra}]'\n"
    )
    assert done.returncode == 1


def test_help_and_version_need_no_extra(tmp_path: Path) -> None:
    blocked = "torch", "numpy", "onnxruntime", "bentoml", "httpx"
    (tmp_path / "sitecustomize.py").write_text(f"MISSING = {blocked}\n{MISSING}")
    for option in ("--help", "--version"):
        done = subprocess.run(
            [LABELCURVE, option],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
