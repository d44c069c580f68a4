from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from labelcurve.benchmarks.training_runs import cluster


def test_torchrun_starts_the_command(tmp_path: Path) -> None:
    (tmp_path / "labelcurve.py").write_text("raise RuntimeError('of the working directory')")
    one = [part if part != "2" else "1" for part in cluster.TORCHRUN]
    done = subprocess.run(
        [*one, "--help"],
        env=os.environ | cluster.ENVIRONMENT,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage: labelcurve train" in done.stdout


def test_two_processes_are_compared_seed_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = {"one": (0.9, 0.92, 0.94), "two": (0.91, 0.91, 0.97)}

    def started(given: Any, folder: Path, name: str) -> Any:
        assert given[-4:] == ("--seeds", "3", "--epochs", "2")
        return name

    def finished(name: Any) -> dict[str, Any]:
        return {"bundles": [{"test": {"accuracy": value}} for value in accuracies[name]]}

    monkeypatch.setattr(cluster, "_start", started)
    monkeypatch.setattr(cluster, "_finish", finished)
    found = cluster.processes(cluster.Options(seeds=3, epochs=2))
    assert found["one"]["mean"] == pytest.approx(0.92)
    assert found["one"]["std"] == pytest.approx(0.02)
    # Differences: 0.01, -0.01, 0.03, of mean 0.01 and standard deviation 0.02.
    assert found["mean_difference"] == pytest.approx(0.01)
    assert found["standard_error"] == pytest.approx(0.02 / 3**0.5)
    assert found["command"].startswith("labelcurve train --data digits --fraction 1.0")
