from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.accuracy import Predictions
from benchmarks.record import Load, Report
from bundle.errors import LabelcurveError
from bundle.store import Bundle
from training.data import Data

LOAD = Load(
    users=8,
    same_machine=True,
    rounds=3,
    seconds=15.0,
    n=1234,
    errors=7,
    messages={"status 503": 7},
    n_checked=64,
    requests_per_s=82.0,
    requests_per_s_low=80.0,
    requests_per_s_high=84.0,
    p50_ms=3.25,
    p95_ms=7.5,
    p99_ms=12.345,
    client_cpu=0.4,
    server_cpu_ms=0.9,
)


@pytest.fixture
def loaded(measured: Report) -> Report:
    models = tuple(model.model_copy(update={"load": LOAD}) for model in measured.models)
    return measured.model_copy(update={"models": models})


def test_writes_three_files_and_nothing_else(measured: Report, tmp_path: Path) -> None:
    paths = report.write(tmp_path / "new" / "folder", measured)
    report.write(tmp_path / "new" / "folder", measured)
    written = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert written == {path.name for path in paths.values()}
    assert written == {"report.html", "report.md", "report.json"}
    assert Report.model_validate_json(paths["json"].read_bytes()) == measured
    assert json.loads(paths["json"].read_text())["schema_version"] == 1


def test_a_folder_that_cannot_be_written_is_named(measured: Report, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LabelcurveError, match=r"cannot write the report to .*--out"):
        report.write(tmp_path / "file" / "out", measured)


def test_the_page_stands_alone(loaded: Report) -> None:
    page = report.html(loaded)
    assert not re.search(r"(src|href)=\"(?!#|data:)", page)
    assert "@import" not in page
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert page.count("<svg ") == 4
    assert not re.search(r"\b(nan|None|inf)\b", re.sub(r"<svg.*?</svg>", "", page, flags=re.S))


def test_every_figure_has_its_conditions(loaded: Report) -> None:
    for text in (report.html(loaded), report.markdown(loaded)):
        for model in loaded.models:
            assert model.name in text
            assert model.version in text
        assert "a warning" in text
        assert "n = 355" in text or "355 test images" in text
        assert "12.3" in text
        assert "bench --no-load" in text
        assert loaded.provenance.cpu in text
        assert loaded.provenance.packages["numpy"] in text
        assert loaded.dataset.hash[:12] in text


def test_without_load(measured: Report) -> None:
    assert "Not measured" in report.html(measured)
    assert "Not measured" in report.markdown(measured)


def test_names_cannot_break_the_page_or_the_tables(measured: Report) -> None:
    old = measured.dataset.class_names
    names = ("<script>alert(1)</script>", "a|b", *old[2:])
    models = tuple(
        model.model_copy(
            update={
                "accuracy": model.accuracy.model_copy(
                    update={
                        "per_class": dict(
                            zip(names, model.accuracy.per_class.values(), strict=True)
                        )
                    }
                )
            }
        )
        for model in measured.models
    )
    dataset = measured.dataset.model_copy(update={"class_names": names})
    changed = measured.model_copy(update={"models": models, "dataset": dataset})
    assert "<script" not in report.html(changed)
    lines = [line for line in report.markdown(changed).splitlines() if "a\\|b" in line]
    assert len(lines) == 1


def test_examples_show_the_truth_and_every_answer(
    measured: Report, bundles: list[Bundle], data: Data, predictions: dict[str, Predictions]
) -> None:
    shown = report.examples(bundles, data, predictions)
    assert len(shown) == 6
    for example in shown:
        assert example.truth == data.class_names[data.test.labels[example.row]]
        assert [name for name, _, _ in example.answers] == [bundle.name for bundle in bundles]
        for name, answer, right in example.answers:
            assert answer == data.class_names[predictions[name].labels[example.row]]
            assert right == (answer == example.truth)
    page = report.html(measured, shown)
    assert page.count("data:image/png;base64,") == 6
    assert "data:image" not in report.html(measured)
