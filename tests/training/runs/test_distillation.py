from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from labelcurve.bundle import store
from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data
from labelcurve.training.jobs import train
from labelcurve.training.models import export
from labelcurve.training.options import Options
from labelcurve.training.recipes import PHOTO_BACKBONE
from labelcurve.training.runs import candidates, distillation, grid, publication
from labelcurve.training.runs.model_run import folder
from labelcurve.training.runtime.checkpoint import Checkpoint
from tests.models import digits as data
from tests.models import graph
from tests.training.jobs import test_train
from tests.training.jobs.test_faults import Gone, left, versions

pytestmark = pytest.mark.usefixtures("narrow")

TEACHER, STUDENT = "digits-scratch-20", "digits-scratch-compact-20"


def options(out: Path, cache: Path, **more: Any) -> Options:
    return test_train.options(out, cache, **({"image_size": 16, "max_latency": 0.7} | more))


@pytest.fixture(autouse=True)
def half_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice does not depend on the machine."""
    times = {"convnet": 1.0, "convnet/2": 0.5}
    monkeypatch.setattr(candidates, "_took", lambda _, backbone: times[backbone])


@pytest.fixture(scope="module")
def sixteen(cache: Path) -> Data:
    return dataset.load("digits", size=16, cache=cache)


def test_both_are_published_and_say_what_each_costs(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = train.run(options(tmp_path, cache), part=True)
    said = capsys.readouterr().out
    assert train.run(options(tmp_path, cache)) == document, "published once"
    assert capsys.readouterr().out.count("was published before the interruption") == 2
    first, second = document["bundles"]
    assert [first["name"], second["name"]] == [TEACHER, STUDENT]
    teacher, student = (store.read(tmp_path, name) for name in (TEACHER, STUDENT))
    origin = student.manifest.teacher
    assert origin is not None
    assert (origin.name, origin.version) == (TEACHER, first["version"])
    assert origin.n_images == 255 + 1_157 == 1_442 - len(range(30))
    assert student.manifest.n_unlabelled == 1_157
    assert (teacher.manifest.backbone, student.manifest.backbone) == ("convnet", "convnet/2")
    assert student.manifest.preprocessing == teacher.manifest.preprocessing
    assert student.manifest.indices_hash == teacher.manifest.indices_hash
    assert student.manifest.parity.top1_agreement == 1.0
    assert teacher.manifest.teacher is None
    assert second["teacher"] == origin.model_dump()
    ran = store.read_run(student.path).latency
    assert ran is not None
    assert (ran.limit_ms, ran.p50_ms) == (0.7, second["p50_ms"])
    assert ran.teacher_p50_ms == first["p50_ms"] > 0
    line = next(line for line in said.splitlines() if line.startswith(f"{TEACHER}: accuracy"))
    assert f"; {STUDENT}: accuracy {second['test']['accuracy']:.4f} on test, " in line
    assert left(tmp_path) == []
    assert not list(folder(tmp_path, grid_cell(STUDENT)).glob("answers-*"))


def grid_cell(name: str) -> Any:
    return type("Named", (), {"name": name})()


def test_an_interrupted_distillation_is_resumed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chosen(name: str, **more: Any) -> Options:
        return options(tmp_path / name, cache, checkpoint_seconds=0.0, no_unlabelled=True, **more)

    train.run(chosen("whole"))
    real = Checkpoint.save

    def save(self: Checkpoint, *arguments: Any, **keywords: Any) -> None:
        real(self, *arguments, **keywords)
        if self.path.parent.name == STUDENT:
            raise Gone

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save)
        with pytest.raises(Gone):
            train.run(chosen("broken"))
    assert {"checkpoint.pt", "finished.json"} < set(left(tmp_path / "broken"))
    capsys.readouterr()
    with monkeypatch.context() as patch:  # existing answers are not computed again
        patch.setattr(distillation, "answers", None)
        train.run(chosen("broken"))
    said = capsys.readouterr().out
    assert re.search(rf"{TEACHER}: \w{{12}} was published before the interruption", said)
    assert "resuming at epoch 0.1 from" in said
    assert versions(tmp_path / "broken") == versions(tmp_path / "whole")
    assert left(tmp_path / "broken") == []
    assert store.read(tmp_path / "broken", STUDENT).manifest.n_unlabelled == 0


def test_a_checkpoint_of_another_teacher_is_not_continued(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = options(tmp_path, cache, checkpoint_seconds=0.0, no_unlabelled=True)
    with monkeypatch.context() as patch:
        patch.setattr(
            distillation.StudentRun,
            "progress",
            lambda run: {**_progress(run), "teacher": "another"},
        )
        patch.setattr("labelcurve.training.runs.publication.publish", _gone_for(STUDENT))
        with pytest.raises(Gone):
            train.run(plan)
    capsys.readouterr()
    _, student = train.run(plan)["bundles"]
    said = capsys.readouterr().out
    assert "the checkpoint is of another teacher, so it starts over" in said
    assert store.read_run(Path(student["path"])).interruptions == 0


_progress = distillation.StudentRun.progress


def _gone_for(name: str) -> Any:
    own = publication.publish

    def publish(*given: Any) -> dict[str, Any]:
        if given[1].name == name:
            raise Gone
        return own(*given)

    return publish


def test_unlabelled_images_are_those_that_are_neither_labelled_nor_validated(
    tmp_path: Path, cache: Path, sixteen: Data
) -> None:
    def student(**more: Any) -> grid.Cell:
        chosen = options(tmp_path, cache, **more)
        cells = grid.cells(chosen, sixteen, print)
        _, found = distillation.with_students(chosen, sixteen, cells, "convnet/2")
        return found

    cell = student()
    n = len(sixteen.train)
    rows = np.concatenate([cell.others(n), cell.subset.train, cell.subset.val])
    assert sorted(rows) == list(range(n))
    assert cell.n_images(n) == n - len(cell.subset.val)
    assert cell.recipe.backbone == "convnet/2"
    alone = student(no_unlabelled=True)
    assert len(alone.others(n)) == 0
    assert alone.n_images(n) == len(alone.subset.train)
    assert student(epochs=7).recipe.epochs == 7
    assert student(seed=3).name == f"{STUDENT}-s3"
    assert not cell.recipe.flip, "digits have no mirror images"
    assert student(data="photos").recipe.flip
    assert not student(data="photos", no_flip=True).recipe.flip


def test_a_compact_network_begins_with_the_weights_of_a_whole_one_of_its_kind(
    tmp_path: Path, cache: Path, sixteen: Data
) -> None:
    chosen = options(tmp_path, cache, data="photos")
    cells = grid.cells(chosen, sixteen, print)
    teacher, student = distillation.with_students(chosen, sixteen, cells, "convnet/2")
    command: Any = SimpleNamespace(extractor=object())
    assert distillation._extractor(command, student, teacher) is command.extractor
    other = replace(teacher, recipe=replace(teacher.recipe, backbone=PHOTO_BACKBONE))
    found = distillation._extractor(command, student, other)
    assert found is not None
    assert (found.card.backbone, found.card.image_size, found.card.flip) == ("convnet", 32, True)
    plain = replace(student, recipe=replace(student.recipe, flip=False))
    assert distillation._extractor(command, plain, other) is None, "all that ship were mirrored"


def test_the_line_about_a_compact_model_says_what_both_reach() -> None:
    def entry(name: str, ms: float, **more: Any) -> dict[str, Any]:
        figures = {"val": {"accuracy": 0.5}, "test": {"accuracy": 0.25}}
        return {"name": name, "p50_ms": ms, **figures, **more}

    entries = [
        entry("a", 2.0),
        entry("b", 1.0, teacher={"name": "a"}),
        entry("c", 4.0, test=None),
        entry("d", 3.0, test=None, teacher={"name": "c"}),
        entry("e", 6.0, measured={}),
        entry("f", 5.0, measured={}, teacher={"name": "e"}),
    ]
    assert distillation.said(entries, 1.5) == [
        "a: accuracy 0.2500 on test, 2.00 ms an image; b: accuracy 0.2500 on test, 1.00 ms an "
        "image (--max-latency 1.5)",
        "c: accuracy 0.5000 on validation, 4.00 ms an image; d: accuracy 0.5000 on validation, "
        "3.00 ms an image (--max-latency 1.5)",
        "e: 6.00 ms an image; f: 5.00 ms an image (--max-latency 1.5)",
    ]


@pytest.mark.parametrize("flip", [False, True])
def test_the_answer_to_an_image_is_the_mean_with_its_mirror_image(flip: bool) -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(64, 10)).astype(np.float32)
    runtime = export.session(graph(weight, np.zeros(10, np.float32)))
    pixels = np.round(data().images[:50] * 255 / 16).astype(np.uint8)[..., None].repeat(3, 3)
    rows = np.arange(3, 48)
    parts = list(distillation.answers(runtime, pixels, rows, flip))
    assert np.array_equal(np.concatenate([part for part, _ in parts]), rows)
    found = np.concatenate([answer for _, answer in parts])
    plain, mirrored = (export.probabilities(runtime, p) for p in (pixels, pixels[:, :, ::-1]))
    expected = (plain + mirrored) / 2 if flip else plain
    assert np.allclose(found, expected[rows], atol=1e-6)
    assert not np.allclose(plain, mirrored, atol=0.1)


def test_seeds_are_summarised_apart_for_teachers_and_students() -> None:
    figures = {"accuracy": 0.9, "balanced_accuracy": 0.9, "f1": 0.9}
    worse = {key: value - 0.1 for key, value in figures.items()}
    bundles = [
        {"fraction": 0.1, "test": figures},
        {"fraction": 0.1, "test": worse, "teacher": {"name": "a"}},
    ] * 2
    whole, compact = grid.summary(bundles, lambda _: None)
    assert whole["accuracy"]["mean"] == pytest.approx(0.9)
    assert "compact" not in whole
    assert (compact["compact"], compact["seeds"]) == (True, 2)
    assert compact["accuracy"]["mean"] == pytest.approx(0.8)
