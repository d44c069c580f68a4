"""The final model: folders of digits without a test split, one epoch each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelcurve.bundle import promotion, store
from labelcurve.bundle.errors import ExportError
from labelcurve.bundle.store import Bundle
from labelcurve.training.data import dataset
from labelcurve.training.data.corrections import identity
from labelcurve.training.data.sources import Selection
from labelcurve.training.jobs import quantize as quantize_job
from labelcurve.training.jobs import train
from labelcurve.training.models import quantize
from labelcurve.training.options import RUNS, Options, QuantizeOptions
from labelcurve.training.runs import candidates, final, grid
from tests.training.conftest import narrowed
from tests.training.sets import digit_rows, write_folder

N = 150
"""Labels: 15 a class, of which 3 are test and 1 validates."""


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    with narrowed():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("final") / "digits8", digit_rows(15))


def options(folder: Path, **more: Any) -> Options:
    given = {"data": str(folder), "image_size": 8, "extractor": "none", "epochs": 1, **more}
    return Options(**{"fraction": (1.0,), "device": "cpu", **given})


@pytest.fixture(scope="module")
def trained(
    folder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Bundles at 50 and 100 % and the final one, and the command's document."""
    out = tmp_path_factory.mktemp("models")
    given = options(folder, out=out, cache=cache, fraction=(0.5, 1.0))
    return out, train.run(given)


def bundle(trained: tuple[Path, dict[str, Any]], name: str) -> Bundle:
    return store.read(trained[0], name)


def test_it_learns_from_all_labels_and_has_the_figures_of_the_model_before(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    _, document = trained
    assert [b["n_labels_train"] for b in document["bundles"]] == [50, 110]
    (last,) = document["final"]
    assert (last["name"], last["n_labels_train"], last["n_labels_val"]) == (
        "digits8-scratch-final",
        N,
        0,
    )
    before = bundle(trained, "digits8-scratch-100")
    after = bundle(trained, "digits8-scratch-final")
    assert after.graph != before.graph
    same = ("val", "test", "held_out", "predicted", "temperature", "class_names")
    one, two = before.manifest, after.manifest
    assert [getattr(one, name) for name in same] == [getattr(two, name) for name in same]
    assert one.measured is None
    assert two.measured is not None
    assert (two.measured.name, two.measured.version) == (before.name, before.version)
    assert (two.measured.n_labels_train, two.measured.n_labels_val) == (110, 10)
    assert last["measured"] == two.measured.model_dump()
    assert (two.dataset.n_train, two.dataset.n_test, two.dataset.hash) == (N, 0, one.dataset.hash)
    assert two.parity.n_images == N
    ran, run = store.read_run(before.path), store.read_run(after.path)
    assert (run.report, run.confusion) == (ran.report, ran.confusion)
    assert run.history[0].val_loss is None
    assert ran.history[0].val_loss is not None


def test_the_card_says_whose_figures_they_are(trained: tuple[Path, dict[str, Any]]) -> None:
    after = bundle(trained, "digits8-scratch-final")
    card = (after.path / "README.md").read_text()
    assert f"The final model, trained on all {N} labels of `digits8`" in card
    assert "**The figures are those of `digits8-scratch-100`**" in card
    assert "on 150\n  training images" in card
    assert "among them, as `digits8-scratch-100` was on 110." in card
    assert "No other label was used" not in card
    other = (bundle(trained, "digits8-scratch-100").path / "README.md").read_text()
    assert "final model" not in other


def test_a_label_of_the_test_images_reaches_the_final_model_alone(
    folder: Path, cache: Path, tmp_path: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    images = dataset.load(str(folder), size=8, cache=cache, say=lambda _: None)
    labels = images.test.labels.copy()
    labels[:10] = (labels[:10] + 1) % 10
    other = replace(images, test=replace(images.test, labels=labels))
    given = options(folder, out=tmp_path, cache=cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "load", lambda *_, **__: other)
        train.run(given)
    for name, same in (("digits8-scratch-100", True), ("digits8-scratch-final", False)):
        assert (store.read(tmp_path, name).graph == bundle(trained, name).graph) is same


@pytest.mark.parametrize(
    "more",
    [
        *({"no_final": True}, {"no_test": True}, {"fraction": (0.5,)}, {"data": "digits"}),
        *({"seed": 1}, {"preset": "reference"}),
    ],
    ids=str,
)
def test_where_there_is_none(folder: Path, cache: Path, more: dict[str, Any]) -> None:
    images = dataset.load(str(folder), size=8, cache=cache, say=lambda _: None)
    given = options(folder, cache=cache)
    cells = grid.cells(given, images, lambda _: None)
    found = final.planned(given, images, cells)
    assert found is not None
    assert (found.cell.measured, found.cell.name) == (
        "digits8-scratch-100",
        "digits8-scratch-final",
    )
    assert final.planned(given, replace(images, test_given=True), cells) is None
    wanted = replace(given, **more)
    others = [c for c in cells if c.subset.fraction in wanted.fractions]
    assert final.planned(wanted, images, others) is None


def test_all_rows_are_there_once_with_their_labels_and_files(folder: Path, cache: Path) -> None:
    images = dataset.load(str(folder), size=8, cache=cache, say=lambda _: None)
    every = final.whole(images)
    assert (len(images.train), len(images.test), len(every.train)) == (120, 30, N)
    assert len(every.test) == 0
    assert every.pixels_hash == images.pixels_hash
    wheres = [every.train.where(i) for i in range(N)]
    assert len(set(wheres)) == N
    assert all(
        Path(where).parent.name == every.class_names[label]
        for where, label in zip(wheres, every.train.labels, strict=True)
    )
    for i, row in ((3, images.train), (123, images.test)):
        j = i if row is images.train else i - 120
        assert every.train.read(i) == row.read(j)
        assert np.array_equal(every.train.images[i], row.images[j])
        assert every.train.digests[np.array([i])] == row.digests[np.array([j])]


def test_corrections_hold_for_the_images_that_were_test_too(folder: Path, cache: Path) -> None:
    images = dataset.load(str(folder), size=8, cache=cache, say=lambda _: None)
    names = [identity(images.test.where(i), str(folder)) for i in (0, 1)]
    drop, relabel = (folder.parent / f"{kind}.csv" for kind in ("drop", "relabel"))
    drop.write_text(f"path,suggested\n{names[0]},\n")
    label = images.class_names[(images.test.labels[1] + 1) % 10]
    relabel.write_text(f"path,suggested\n{names[1]},{label}\n")
    said: list[str] = []
    chosen = Selection(str(folder), drop=drop, relabel=relabel)
    corrected = dataset.load(chosen, size=8, cache=cache, say=said.append)
    assert "a final model learns from them as corrected" in "\n".join(said)
    assert (len(corrected.train), len(corrected.test)) == (120, 30)
    every = final.whole(corrected).train
    assert len(every) == N - 1
    labels = {every.where(i): images.class_names[every.labels[i]] for i in range(len(every))}
    assert images.test.where(0) not in labels
    assert labels[images.test.where(1)] == label
    assert len(final.subset(final.whole(corrected)).train) == N - 1


def test_with_too_few_images_for_a_test_it_has_the_validation_labels_at_least(
    cache: Path, tmp_path: Path
) -> None:
    data = write_folder(tmp_path / "few", digit_rows(4))
    given = options(data, cache=cache, out=tmp_path / "models")
    said: list[str] = []
    images = dataset.load(str(data), size=8, cache=cache, say=said.append)
    last = final.planned(given, images, grid.cells(given, images, said.append))
    assert last is not None
    assert (len(images.test), len(last.cell.subset.train)) == (0, 40)


def test_a_final_model_of_other_data_is_warned_of(
    trained: tuple[Path, dict[str, Any]], folder: Path, cache: Path
) -> None:
    images = dataset.load(str(folder), size=8, cache=cache, say=lambda _: None)
    given = options(folder, cache=cache)
    cells = grid.cells(given, images, lambda _: None)
    last = final.planned(given, images, cells)
    assert last is not None
    for several, warned in (([*cells, last.cell], False), (cells, True)):
        said: list[str] = []
        grid.check_replaced(trained[0], str(folder), images, several, said.append)
        text = "\n".join(said)
        assert ("models remove digits8-scratch-final" in text) is warned


def test_an_interrupted_command_resumes_with_only_the_final_model(
    folder: Path, cache: Path, tmp_path: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    given = options(folder, out=tmp_path, cache=cache)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(final.FinalRun, "learn", stop)
        with pytest.raises(KeyboardInterrupt):
            train.run(given)
    before = store.read(tmp_path, "digits8-scratch-100").version
    checkpoint = tmp_path / RUNS / "digits8-scratch-100" / "checkpoint.pt"
    checkpoint.write_bytes(b"killed before it was removed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("labelcurve.training.runs.model_run.ModelRun.learn", stop)  # not again
        document = train.run(given)
    assert document["bundles"][0]["version"] == before
    assert not checkpoint.exists()
    assert document["final"][0]["version"] == trained[1]["final"][0]["version"]


def test_a_version_that_becomes_the_current_one_meanwhile_does_not_lend_its_figures(
    folder: Path, cache: Path, tmp_path: Path
) -> None:
    given = options(folder, out=tmp_path, cache=cache)
    name = "digits8-scratch-100"
    train.run(replace(given, epochs=2, no_final=True))
    other = store.read(tmp_path, name).version
    learn = final.FinalRun.learn

    def rolled_back(run: Any, *rest: Any) -> Any:
        promotion.promote(tmp_path, name, other)
        return learn(run, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(final.FinalRun, "learn", rolled_back)
        document = train.run(given)
    version = document["bundles"][0]["version"]
    assert version != other
    assert document["final"][0]["measured"]["version"] == version


def test_a_variant_has_the_figures_of_the_model_before_too(
    folder: Path,
    cache: Path,
    tmp_path: Path,
    trained: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantize, "LOST_POINTS", 100.0)  # after one epoch
    monkeypatch.setattr(quantize, "LEAST_AGREEMENT", 0.0)
    models = tmp_path / "models"
    models.mkdir()
    for name in ("digits8-scratch-100", "digits8-scratch-final"):
        found = bundle(trained, name)
        record = store.read_run(found.path)
        store.publish(models, found.manifest, found.graph, "", record)
    given = QuantizeOptions(
        models=models, data=str(folder), precision="fp16", cache=cache, only=(f"{name}",)
    )
    with pytest.raises(ExportError, match="has no such graph: quantize that first"):
        quantize_job.run(given)
    document = quantize_job.run(replace(given, only=()))
    assert [b["name"] for b in document["bundles"]] == [
        "digits8-scratch-100",
        "digits8-scratch-final",
    ]
    one, two = (store.read(models, b["name"]).manifest.variants[0] for b in document["bundles"])
    assert (two.val, two.test, two.held_out) == (one.val, one.test, one.held_out)
    assert (one.n_compared, two.n_compared) == (10, N)
    found = bundle(trained, "digits8-scratch-50")
    other = found.manifest.model_copy(update={"name": "digits8-scratch-100"})
    store.publish(models, other, found.graph, "", store.read_run(found.path))
    with pytest.raises(ExportError, match="trained again since"):
        quantize_job.run(given)
    (models / "digits8-scratch-100" / "current").unlink()
    with pytest.raises(ExportError, match="which is not there"):
        quantize_job.run(given)


def test_a_compact_model_learns_from_the_final_one_too(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"convnet at 16 px": 2.0, "convnet/2 at 16 px": 0.5}
    monkeypatch.setattr(candidates.Times, "__call__", lambda self, name: times[f"{name} at 16 px"])
    given = options(folder, out=tmp_path, cache=cache, image_size=16, max_latency=1.0)
    document = train.run(given)
    assert [b["name"] for b in document["bundles"]] == [
        "digits8-scratch-100",
        "digits8-scratch-compact-100",
    ]
    last, compact = document["final"]
    assert (last["name"], compact["name"]) == (
        "digits8-scratch-final",
        "digits8-scratch-compact-final",
    )
    manifest = store.read(tmp_path, compact["name"]).manifest
    assert manifest.teacher is not None
    assert (manifest.teacher.name, manifest.teacher.n_images) == (last["name"], N)
    assert manifest.measured is not None
    assert manifest.measured.name == "digits8-scratch-compact-100"
    assert manifest.val == store.read(tmp_path, "digits8-scratch-compact-100").manifest.val
