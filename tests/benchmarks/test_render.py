from __future__ import annotations

import json
from pathlib import Path

import pytest

from labelcurve.benchmarks import cli, render
from labelcurve.benchmarks.quality import learning_curve
from labelcurve.benchmarks.record import Report
from labelcurve.bundle.errors import LabelcurveError
from tests.benchmarks.quality.test_learning_curve import LABELS, models

RESULT = Path(__file__).parent.parent.parent / "benchmarks/results/cifar10.json"
LATER = {
    "": ("comparisons", "curves", "notes", "null", "price_per_hour", "price_per_label"),
    "model": ("besides", "robustness"),
    "accuracy": ("balanced_accuracy", "calibration", "f1_high", "f1_low", "right"),
    "load": ("server_memory_mb", "stable", "stages", "windows"),
}
"""Fields that the first reports did not have, nor `saturation`."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A report as the first release wrote it."""
    document = json.loads(RESULT.read_bytes())
    del document["saturation"]
    (other,) = (m for m in document["models"] if m["name"] == "cifar10-mirror-10")
    other["preset"] = "reference"  # the reference network is not among the models
    for part, names in LATER.items():
        for model in document["models"]:
            holder = {"": document, "model": model}.get(part) or model[part]
            if holder is None:  # no load for the second seed of a fraction
                continue
            for name in names:
                holder.pop(name, None)
    path = tmp_path / "old" / "report.json"
    path.parent.mkdir()
    path.write_text(json.dumps(document))
    return path


def test_keeps_the_figures_and_adds_what_is_said(measured: Report) -> None:
    found = render.renewed(measured, render.Render(Path("unused"), note=("again",)))
    assert found == measured.model_copy(update={"notes": ("a note", "again")})
    priced = measured.model_copy(update={"price_per_hour": 1.0, "price_per_label": 2.0})
    assert render.renewed(priced, render.Render(Path("unused"))).price_per_label == 2
    changed = render.renewed(priced, render.Render(Path("unused"), price_per_hour=3.0))
    assert (changed.price_per_hour, changed.price_per_label) == (3, 2)


def test_keeps_the_accuracies_that_were_asked_for(measured: Report) -> None:
    found, right = models(measured, LABELS)
    asked = measured.model_copy(
        update={
            "models": tuple(found),
            "curves": learning_curve.curves(found, right, (0.77, 0.999)),
        }
    )
    again = render.renewed(asked, render.Render(Path("unused")))
    assert [t.accuracy for c in again.curves for t in c.targets] == [0.77, 0.999]


def test_a_report_of_an_earlier_release(old: Path, tmp_path: Path) -> None:
    """It has no predictions by image, so what needs them is left out."""
    cli.main(["render", str(old), "--out", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert "## Comparison with the reference experiment" in text
    assert "| 10 % | 72 % | 85.90 % | 85.45 ± 0.33 % (3 seeds) | -0.45 |" in text
    assert "## Calibration" not in text
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_no_report(tmp_path: Path) -> None:
    with pytest.raises(LabelcurveError, match="cannot read"):
        cli.main(["render", str(tmp_path)])


def test_its_own_folder_and_options_that_cannot_be_meant(old: Path, tmp_path: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(LabelcurveError, match="is the folder of the report: its pictures"):
        cli.main(["render", str(old), "--out", str(old.parent)])
    with pytest.raises(LabelcurveError, match="--target 95: allowed are values between 0 and 1"):
        cli.main(["render", str(old), "--out", str(tmp_path / "new"), "--target", "95"])
    assert old.read_bytes() == before
