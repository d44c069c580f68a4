from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from labelcurve.benchmarks.backtest.draws import Draw
from labelcurve.benchmarks.study import curves, documents, rows
from labelcurve.bundle.errors import LabelcurveError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the README, the docs and the results."""
    shutil.copytree(documents.ROOT / "docs", tmp_path / "docs")
    shutil.copytree(documents.RESULTS, tmp_path / "results")
    shutil.copy(documents.ROOT / "README.md", tmp_path)
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    return ["--root", str(folder), "--results", str(folder / "results"), *more]


def change(folder: Path, accuracy: float) -> None:
    path = folder / "results" / "study.json"
    study = json.loads(path.read_text())
    row = next(row for row in study["rows"] if row["bundle"] == "cifar10-10")
    row["accuracy"] = accuracy
    path.write_text(json.dumps(study))


def test_the_documents_follow_the_results(folder: Path) -> None:
    documents.main(arguments(folder, "--check"))
    change(folder, 0.1234)
    with pytest.raises(LabelcurveError, match=r"README.md.*reference.md.*results.md.*svg stale"):
        documents.main(arguments(folder, "--check"))
    documents.main(arguments(folder))
    documents.main(arguments(folder, "--check"))
    assert "12.34 %" in (folder / "docs" / "results.md").read_text()
    text = (folder / "README.md").read_text()
    assert text.startswith("# Labelcurve")
    assert text.count("<!-- results:end -->") == 1


def test_the_readme_says_how_often_plan_was_right() -> None:
    found = json.loads((documents.RESULTS / "backtest.json").read_text())["draws"]
    draws = [Draw(**draw) for draw in found]
    right = [draw.right for draw in draws if draw.right is not None]
    share = f"{sum(right) / len(right) * 100:.0f} %"
    said = f"Of {len(draws)} back-tests it answered {len(right)} with yes or no, {share} of them"
    assert f"{said} rightly" in (documents.ROOT / "README.md").read_text()


def test_the_published_figures_are_next_to_ours(folder: Path) -> None:
    found = documents.tables(folder / "results")
    opening, experiment = found["README.md", "results"], found["docs/reference.md", "experiment"]
    for published in ("72 %", "77 %", "79 %"):
        assert f"| {published} |" in opening
        assert f" {published} |" in experiment
    assert "homework_3" in opening
    reference = json.loads((folder / "results" / "reference.json").read_text())
    accuracies = {row["fraction"]: row["accuracy"] for row in reference["results"]}
    assert accuracies == {0.1: 0.72, 0.5: 0.77, 1.0: 0.79}


def test_the_experiment_under_its_own_protocol_is_compared_with_ours(folder: Path) -> None:
    path = folder / "results" / "notebook.json"
    first = json.loads(path.read_text())["results"][0]
    row = first | {"accuracy": 0.7123, "images_seen": 1234}
    once = row | {"draw": "once", "accuracy": 0.4567}
    path.write_text(json.dumps({"results": [row, once]}))
    found = documents.tables(folder / "results")
    opening = found["README.md", "results"]
    assert "it reaches 71.2 % here at 10 %, with 1,234 labelled images seen" in opening
    assert "of the first epoch it reaches 45.7 %." in opening
    table = found["docs/reference.md", "notebook"]
    assert "| 10 %, drawn in each epoch, as in the notebook | 1,234 | 43 | 71.2 % ± 1.0 |" in table
    assert "| 45.7 % ± 1.0 | 0.704 | – |" in table
    path.unlink()
    assert "Under its own" not in documents.tables(folder / "results")["README.md", "results"]


def test_seeds_give_mean_deviation_and_n(folder: Path) -> None:
    path = folder / "results" / "study.json"
    study = rows.read(path)
    (first,) = (row for row in study.rows if row.bundle == "cifar10-50")
    seeds = [
        first.model_copy(update={"seed": seed, "accuracy": 0.90 + seed / 100, "mirrored": 0.915})
        for seed in range(3)
    ]
    others = tuple(row for row in study.rows if row.bundle != "cifar10-50")
    study = study.model_copy(update={"rows": (*others, *seeds)})
    path.write_text(study.model_dump_json())
    found = documents.tables(folder / "results")
    assert "91.0 ± 1.0 % (n = 3)" in found["README.md", "results"]
    assert f"91.0 ± 1.0 % | {first.f1:.4f} | +0.5 |" in found["docs/results.md", "study"]
    assert rows.gain([*seeds, first.model_copy(update={"mirrored": None})]) == "–"


def test_an_ablation_from_another_extractor_is_not_compared(folder: Path) -> None:
    path = folder / "results" / "study.json"
    study = rows.read(path)
    full = study.group("default", 0.1)
    for seconds, expected in ((full[0].pretraining_seconds, "| +1.0 |"), (60.0, "| – |")):
        changed = {"accuracy": rows.mean(full, "accuracy") + 0.01, "pretraining_seconds": seconds}
        ablation = full[0].model_copy(update={"variant": "no-crop", **changed})
        found = [row for row in study.rows if row.variant != "no-crop"]
        path.write_text(study.model_copy(update={"rows": (*found, ablation)}).model_dump_json())
        table = documents.tables(folder / "results")["docs/results.md", "study"]
        (line,) = (line for line in table.splitlines() if line.startswith("| without random crops"))
        assert line.endswith(expected)
        assert ("from an extractor of 1 min" in line) == (seconds == 60.0)


def test_times_measured_under_other_load_are_not_shown(folder: Path) -> None:
    path = folder / "results" / "study.json"
    study = rows.read(path)
    shared = tuple(row.model_copy(update={"shared": True}) for row in study.rows)
    path.write_text(study.model_copy(update={"rows": shared}).model_dump_json())
    table = documents.tables(folder / "results")["README.md", "results"]
    assert " min " not in table.partition("\n\n")[0]
    assert "their training time is not shown" in table


def test_the_curves_show_every_variant() -> None:
    study = rows.read(documents.RESULTS / "study.json")
    reference = json.loads((documents.RESULTS / "reference.json").read_text())
    plot = partial(curves.learning, study, reference)
    drawn = curves.draw("input", plot)
    assert drawn == curves.draw("input", plot)
    assert curves.key("input") in drawn
    for _, name, _, _ in curves.LINES:
        assert f">{name}<" in drawn


def test_longer_pretraining_is_a_table_and_a_plot(folder: Path) -> None:
    path = folder / "results" / "extractors.json"
    made = json.loads(path.read_text())
    first = made["rows"][0] | {"hours": 2.5, "views_seen": 900_000, "n_images": 45_000}
    made["rows"] = [first | {"knn": 0.5, "probe": 0.75, "n_held_out": 10_000}]
    path.write_text(json.dumps(made))
    table = documents.tables(folder / "results")["docs/results.md", "extractors"]
    assert "| 2 h 30 min | 900,000 | 10 | 0.5000 | 0.7500 |" in table
    assert "on 10,000 training images of cifar10 that no extractor saw (standard error 0.5" in table
    with pytest.raises(LabelcurveError, match=r"results.md.*extractors.svg stale"):
        documents.main(arguments(folder, "--check"))
    documents.main(arguments(folder))
    drawn = (folder / "docs" / "extractors.svg").read_text()
    assert ">2.5<" in drawn
    assert ">linear probe<" in drawn


def test_missing_markers_and_results(folder: Path) -> None:
    with pytest.raises(LabelcurveError, match="once each"):
        documents.splice("no markers", "results", "table")
    with pytest.raises(LabelcurveError, match="once each"):
        documents.splice("<!-- a:end --><!-- a:begin -->", "a", "table")
    path = folder / "results" / "cifar10.json"
    path.write_text("{}")
    with pytest.raises(LabelcurveError, match=r"cifar10.json does not follow this release"):
        documents.tables(folder / "results")
    path.unlink()
    with pytest.raises(LabelcurveError, match=r"cannot read .*cifar10.json"):
        documents.tables(folder / "results")


def test_what_the_service_lost_is_in_the_docs(folder: Path) -> None:
    path = folder / "results" / "service" / "restarts.json"
    found = json.loads(path.read_text())
    found["statuses"]["lost: closed before the answer"] = found["lost"] = 3
    path.write_text(json.dumps(found))
    table = documents.tables(folder / "results")["docs/operating.md", "service"]
    requests = found["statuses"]["200"] + 3
    assert f"| {found['restarts']} restarts, {requests:,} requests | 3 |" in table
    assert found["provenance"]["cpu"] in table
