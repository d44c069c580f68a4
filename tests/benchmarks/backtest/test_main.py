"""Files of draws, and errors as a user sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from labelcurve.benchmarks.backtest.__main__ import _kept, _numbers, _write
from labelcurve.benchmarks.backtest.populations import Population
from labelcurve.benchmarks.harness import provenance
from labelcurve.bundle.errors import LabelcurveError
from tests.benchmarks.backtest.test_draws import made


def test_draws_are_read_back_and_the_commit_is_that_before_they_were_written(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "draws.json"
    draws = [made("yes", 0.85, 0.86), made("no", 0.81, 0.815)]
    assert _kept(path) == []
    _write(path, draws, provenance.here().model_copy(update={"git_commit": "before"}))
    assert _kept(path) == draws
    assert '"git_commit": "before"' in path.read_text()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"draws": [{"population": "set"}]}'])
def test_a_file_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "draws.json").write_text(text)
    with pytest.raises(LabelcurveError, match="holds no draws of this release"):
        _kept(tmp_path / "draws.json")


def test_small_data_sets_split_what_is_not_held_out_and_smaller_ones_are_refused() -> None:
    def numbers(images: int) -> list[tuple[int, int]]:
        features, labels = np.zeros((images, 1), np.float32), np.zeros(images, np.int64)
        return list(_numbers(Population("digits", features, labels)))

    assert numbers(3500) == [(200, 600), (800, 2000)]
    assert numbers(1797) == [(200, 600), (300, 750)]
    assert numbers(1500) == [(200, 600), (200, 500)]
    with pytest.raises(LabelcurveError, match="digits has 1,499 images: 1,500 are needed"):
        numbers(1499)


@pytest.mark.parametrize(
    "module", ["backtest", "backtest.lcdb", "labelling.accepting", "labelling.suggesting"]
)
def test_an_error_is_explained_without_a_traceback(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"labelcurve.benchmarks.{module}", "--out", str(tmp_path)]
    command += ["--accuracies", "none"] * module.endswith("lcdb")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: --out {tmp_path} is a folder"), done.stderr
