from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.record import Model, Report
from bundle.errors import LabelcurveError

README = f"# Title\n\n{tables.BEGIN}\nold\n{tables.END}\n\ntext\n"


@pytest.fixture
def results(measured: Report, tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    shutil.copy(tables.RESULTS / tables.REFERENCE, folder)
    dataset = measured.dataset.model_copy(update={"name": "cifar10"})
    report = measured.model_copy(update={"dataset": dataset})
    (folder / "cifar10.json").write_text(report.model_dump_json())
    return folder


def test_a_row_a_fraction(measured: Report) -> None:
    rows = tables.rows(measured)
    assert [row[0] for row in rows] == ["10 %", "50 %", "100 %"]
    assert [row[1] for row in rows] == ["144 + 16", "718 + 79", "1,437 + 159"]
    assert all(len(row) == len(tables.HEADER) for row in rows)
    assert all(row[-3:] == ("–", "–", "–") for row in rows)
    assert rows[0][2] == f"{measured.models[0].accuracy.accuracy * 100:.2f} %"


def test_variants_of_one_fraction_have_a_row_each_and_say_what_they_are(measured: Report) -> None:
    first = measured.models[0].model_copy(update={"preset": "default"})
    ours = first.model_copy(update={"extractor": "contrastive", "pretraining_seconds": 4200.0})
    reference = ours.model_copy(update={"preset": "reference"})
    without = first.model_copy(update={"preset": "reference"})
    models = (ours, first, reference, without)
    changed = measured.model_copy(update={"models": models})
    names = [row[0] for row in tables.rows(changed)]
    assert names == ["10 %", "10 %, scratch", "10 %, reference", "10 %, reference scratch"]
    assert "learned without labels in 1 h 10 min" in tables.conditions(changed)
    assert "without labels" not in tables.conditions(measured)


def test_several_seeds_give_mean_and_deviation(measured: Report) -> None:
    def seed(model: Model, number: int, accuracy: float) -> Model:
        score = model.accuracy.model_copy(update={"accuracy": accuracy})
        return model.model_copy(update={"seed": number, "accuracy": score})

    first = measured.models[0]
    models = tuple(seed(first, number, 0.8 + number / 100) for number in range(3))
    changed = measured.model_copy(update={"models": models})
    (row,) = tables.rows(changed)
    assert row[2] == "81.00 ± 1.00 %"
    assert "over 3 seeds" in tables.conditions(changed)


def test_the_readme_is_made_from_the_results(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(README)
    arguments = ["--readme", str(readme), "--results", str(results)]
    with pytest.raises(SystemExit, match="is stale"):
        tables.main([*arguments, "--check"])
    assert readme.read_text() == README
    tables.main(arguments)
    tables.main([*arguments, "--check"])
    text = readme.read_text()
    assert text.startswith("# Title\n\n")
    assert text.endswith(f"{tables.END}\n\ntext\n")
    assert "old" not in text
    assert "| 10 % | 144 + 16 |" in text
    for published in ("72 %", "77 %", "79 %"):
        assert f"| {published} |" in text
    assert "homework_3" in text
    assert "**a warning**" in text


def test_the_reference_experiment_stands_beside_its_own_data_only(
    results: Path, measured: Report
) -> None:
    (results / "cifar10.json").write_text(measured.model_dump_json())
    assert "reference experiment" not in tables.readme(results)


def test_what_was_published() -> None:
    reference = json.loads((tables.RESULTS / tables.REFERENCE).read_text())
    found = {row["fraction"]: row["accuracy"] for row in reference["results"]}
    assert found == {0.1: 0.72, 0.5: 0.77, 1.0: 0.79}


def test_missing_markers_and_results(results: Path, tmp_path: Path) -> None:
    with pytest.raises(LabelcurveError, match="once each"):
        tables.splice("no markers", "table")
    with pytest.raises(LabelcurveError, match="once each"):
        tables.splice(f"{tables.END}{tables.BEGIN}", "table")
    (results / "cifar10.json").write_text("{}")
    with pytest.raises(LabelcurveError, match=r"cifar10.json is no report.json"):
        tables.readme(results)
    (results / "cifar10.json").unlink()
    with pytest.raises(LabelcurveError, match="no report in"):
        tables.readme(results)


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (245, "4 min 05 s"), (3725, "1 h 02 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text
