from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import cli, render
from benchmarks.record import Report

OLD = Path(__file__).parent.parent.parent / "benchmarks/results/cifar10.json"


def test_keeps_the_figures_and_adds_what_is_said(measured: Report) -> None:
    found = render.renewed(measured, render.Render(Path("unused"), note=("again",)))
    assert found == measured.model_copy(update={"notes": ("a note", "again")})


def test_a_report_of_an_earlier_release(tmp_path: Path) -> None:
    """It has no answers by image, so what needs them is left out."""
    cli.main(["render", str(OLD), "--out", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert "## Beside the reference experiment" in text
    assert "| 10 % | 72 % | 85.28 % |" in text
    assert "## Calibration" not in text
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_no_report(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: cannot read"):
        cli.main(["render", str(tmp_path)])
