from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import cli
from benchmarks.record import Report
from benchmarks.report import page

OLD = Path(__file__).parent.parent.parent / "benchmarks/results/cifar10.json"


def test_makes_the_page_again(measured: Report, tmp_path: Path) -> None:
    page.write(tmp_path / "a", measured)
    cli.main(["render", str(tmp_path / "a"), "--out", str(tmp_path / "b"), "--note", "again"])
    found = Report.model_validate_json((tmp_path / "b/report.json").read_bytes())
    assert found == measured.model_copy(update={"notes": ("a note", "again")})
    assert "again" in (tmp_path / "b/report.md").read_text()


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
