from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from benchmarks import accuracy, statistics
from benchmarks.accuracy import Predictions
from bundle.errors import DataError
from bundle.store import Bundle
from training.data import Data


def test_scores_are_those_of_scikit_learn(
    bundles: list[Bundle], data: Data, predictions: dict[str, Predictions]
) -> None:
    bundle = bundles[-1]
    labels = predictions[bundle.name].labels
    found = accuracy.score(bundle, predictions[bundle.name], data)
    truth = data.test.labels
    assert found.n == len(truth) == sum(map(sum, found.confusion))
    assert found.accuracy == pytest.approx(accuracy_score(truth, labels))
    assert found.f1 == pytest.approx(f1_score(truth, labels, average="weighted"))
    assert 0.9 < found.accuracy_low < found.accuracy < found.accuracy_high <= 1
    assert set(found.per_class) == set(data.class_names)
    assert sum(score.support for score in found.per_class.values()) == found.n
    assert sum(row[i] for i, row in enumerate(found.confusion)) / found.n == found.accuracy


def test_more_labels_score_better(
    bundles: list[Bundle], data: Data, predictions: dict[str, Predictions]
) -> None:
    found = [accuracy.score(b, predictions[b.name], data).accuracy for b in bundles]
    assert found == sorted(found)


def test_predictions_do_not_depend_on_the_chunk(
    bundles: list[Bundle],
    data: Data,
    predictions: dict[str, Predictions],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accuracy, "CHUNK", 7)
    again = accuracy.predict(bundles, data, say=lambda _: None)
    for name, before in predictions.items():
        assert (again[name].labels == before.labels).all()


def test_other_data_is_said_loudly(
    bundles: list[Bundle], data: Data, predictions: dict[str, Predictions]
) -> None:
    scores = {b.name: accuracy.score(b, predictions[b.name], data) for b in bundles}
    (warning,) = accuracy.doubts(scores)
    assert "NOT the data of the training" in warning
    assert all(bundle.name in warning for bundle in bundles)


def test_a_difference_to_the_manifest_is_told(
    bundles: list[Bundle], data: Data, predictions: dict[str, Predictions]
) -> None:
    bundle = bundles[0]
    metrics = bundle.manifest.test
    assert metrics is not None
    right = accuracy.score(bundle, predictions[bundle.name], data).accuracy

    def said(value: float) -> list[str]:
        manifest = bundle.manifest.model_copy(
            update={
                "dataset": bundle.manifest.dataset.model_copy(update={"hash": data.hash}),
                "test": metrics.model_copy(update={"accuracy": value}),
            }
        )
        changed = replace(bundle, manifest=manifest)
        score = accuracy.score(changed, predictions[bundle.name], data)
        assert score.same_data
        assert score.difference == pytest.approx(right - value)
        return accuracy.doubts({bundle.name: score})

    assert said(right) == []
    (warning,) = said(right + 2 / len(data.test.labels))
    assert f"2 of {len(data.test.labels)} images" in warning


def test_other_classes_are_refused(bundles: list[Bundle], data: Data) -> None:
    other = replace(data, class_names=("cat", "dog"))
    with pytest.raises(DataError, match=r"digits-10 was trained on digits .* cat, dog"):
        accuracy.check(bundles, other)


def test_an_unreadable_test_image_is_named(bundles: list[Bundle], data: Data) -> None:
    test = replace(data.test, read=lambda row: b"no image" if row == 3 else data.test.read(row))
    with pytest.raises(DataError, match="test image 3 cannot be used"):
        accuracy.predict(bundles, replace(data, test=test), say=lambda _: None)


def test_margin_is_between_the_two_best(predictions: dict[str, Predictions]) -> None:
    for found in predictions.values():
        assert np.all((found.margin >= 0) & (found.margin <= 1))


def test_answers_are_kept_and_a_damaged_file_is_not_believed(
    bundles: list[Bundle],
    data: Data,
    predictions: dict[str, Predictions],
    tmp_path: Path,
) -> None:
    said: list[str] = []
    accuracy.predict(bundles, data, tmp_path, said.append)
    assert not any("cache" in line for line in said)
    unread = replace(data, test=replace(data.test, read=lambda row: b"no image"))
    again = accuracy.predict(bundles, unread, tmp_path, said.append)
    assert "3 of 3 models: answers are in the cache" in said[-1]
    for name, before in predictions.items():
        assert (again[name].labels == before.labels).all()
        assert (again[name].brier == before.brier).all()
    files = sorted((tmp_path / "answers").iterdir())
    assert len(files) == 3
    files[0].write_bytes(files[0].read_bytes()[:50])
    accuracy.predict(bundles, data, tmp_path, said.append)
    assert "2 of 3 models" in " ".join(said[-3:])


def test_calibration_and_bits_are_those_of_the_answers(
    bundles: list[Bundle], data: Data, predictions: dict[str, Predictions]
) -> None:
    bundle = bundles[0]
    found = accuracy.score(bundle, predictions[bundle.name], data)
    assert found.right is not None
    assert statistics.unpack(found.right, found.n).mean() == pytest.approx(found.accuracy)
    assert found.calibration is not None
    assert found.calibration.nll.value == pytest.approx(found.loss, rel=1e-5)
    assert sum(part.n for part in found.calibration.bins) == found.n
    assert found.f1_low is not None
    assert found.f1_high is not None
    assert found.f1_low < found.f1 < found.f1_high
