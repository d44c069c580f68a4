from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from labelcurve.benchmarks import demo
from labelcurve.benchmarks.record import Report
from labelcurve.bundle.errors import LabelcurveError
from tests.benchmarks.running import interrupted


def test_an_option_out_of_range_is_refused_before_the_training(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(LabelcurveError, match=r"--step-seconds 0\.5: allowed are"):
        demo.run(demo.Demo(out=tmp_path, step_seconds=0.5), said.append)
    assert said == []


def test_interrupted_and_then_run_to_the_end(tmp_path: Path) -> None:
    """Ctrl-C in the middle leaves no process, and nothing that breaks a second run."""
    out = tmp_path / "demo"
    short = ["--out", str(out), "--fraction", "0.1", "--epochs", "1", "--load-seconds", "2"]
    ended = interrupted("labelcurve.benchmarks.demo", short, "precision:", signal.SIGINT)
    assert ended.status == 130, ended.output
    assert "Traceback" not in ended.output
    assert ended.children
    assert not ended.survivors()

    done = subprocess.run(
        [
            *(sys.executable, "-m", "labelcurve.benchmarks.demo", *short),
            *("--latency-seconds", "0", "--step-seconds", "0"),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "$ labelcurve train --data digits" in done.stdout
    assert "$ curl --data-binary @" in done.stdout
    (answer,) = [json.loads(line) for line in lines if line.startswith("  [{")]
    assert len(answer) == 3
    assert answer[0]["score"] >= answer[1]["score"]
    assert any("the true class is" in line for line in lines)
    assert any("requests/s" in line for line in lines)
    assert (out / "digit.png").read_bytes().startswith(b"\x89PNG")
    (model,) = Report.model_validate_json((out / "report.json").read_bytes()).models
    assert model.fraction == 0.1
    # The model's own data, and the export is the network that was evaluated.
    assert model.accuracy.same_data
    assert model.accuracy.difference == 0
    assert model.load is not None
    assert model.load.errors == 0
    assert (out / "models" / model.name / "current").exists()
