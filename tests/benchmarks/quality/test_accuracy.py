from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from labelcurve.benchmarks.harness import statistics
from labelcurve.benchmarks.quality import accuracy
from labelcurve.benchmarks.quality.accuracy import Predictions
from labelcurve.bundle.errors import DataError
from labelcurve.bundle.store import Bundle
from labelcurve.training.data import dataset as datasets
from labelcurve.training.data.dataset import Data
from tests.models import SIZE


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
    assert found.precision == pytest.approx(precision_score(truth, labels, average="weighted"))
    assert found.recall == pytest.approx(recall_score(truth, labels, average="weighted"))
    # Wilson's interval by its formula.
    n, p, z = found.n, found.accuracy, 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    assert found.accuracy_low == pytest.approx(middle - half)
    assert found.accuracy_high == pytest.approx(middle + half)
    for name, score in found.per_class.items():
        of_class = truth == data.class_names.index(name)
        assert score.support == of_class.sum()
        assert score.recall == pytest.approx((labels[of_class] == truth[of_class]).mean())
    assert set(found.per_class) == set(data.class_names)
    assert sum(score.support for score in found.per_class.values()) == found.n
    assert sum(row[i] for i, row in enumerate(found.confusion)) / found.n == found.accuracy


def test_a_class_may_have_the_name_of_a_figure(
    bundles: list[Bundle], data: Data, predictions: dict[str, Predictions]
) -> None:
    """scikit-learn's report puts both into one dictionary."""
    said = predictions[bundles[-1].name]
    plain = accuracy.score(bundles[-1], said, data)
    names = ("accuracy", "weighted avg", "macro avg", *data.class_names[3:])
    found = accuracy.score(bundles[-1], said, replace(data, class_names=names))
    assert (found.f1, found.precision, found.recall) == (plain.f1, plain.precision, plain.recall)
    assert list(found.per_class) == list(names)
    assert list(found.per_class.values()) == list(plain.per_class.values())


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
    same, (_, sized) = accuracy.doubts(scores), accuracy.doubts(scores, {bundles[0].name, "b"})
    assert same == [warning]
    assert sized.startswith(f"{bundles[0].name}: of another --image-size, for which large JPEGs")


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


def test_predictions_by_hand() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], np.float32)
    found = accuracy._predictions(probabilities, np.array([0, 1]))
    assert found.labels.tolist() == [0, 2]
    assert found.margin == pytest.approx([0.5, 0.3])
    assert found.true_probability == pytest.approx([0.7, 0.3])
    assert found.confidence == pytest.approx([0.7, 0.6])
    # 0.3 ** 2 + 0.2 ** 2 + 0.1 ** 2 and 0.1 ** 2 + 0.7 ** 2 + 0.6 ** 2
    assert found.brier == pytest.approx([0.14, 0.86])
    assert found.right(np.array([0, 1])).tolist() == [True, False]


@pytest.mark.parametrize("ingredient", ["bundle", "data", "preprocessing", "runtime", "cpu"])
def test_predictions_are_kept_for_what_they_depend_on(
    bundles: list[Bundle],
    data: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ingredient: str,
) -> None:
    before = accuracy._kept(bundles[0], data, tmp_path)
    assert before == accuracy._kept(bundles[0], data, tmp_path)
    bundle, other = bundles[0], data
    match ingredient:
        case "bundle":
            bundle = replace(bundle, version="0123456789ab")
        case "data":
            other = replace(data, hash="f" * 64)
        case "preprocessing":
            monkeypatch.setattr("labelcurve.bundle.preprocess.VERSION", 99)
        case "runtime":
            monkeypatch.setattr("onnxruntime.__version__", "99.0")
        case "cpu":
            monkeypatch.setattr(accuracy, "cpu_name", lambda: "another")
    assert accuracy._kept(bundle, other, tmp_path) != before


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
    assert "3 of 3 models: predictions are cached" in said[-1]
    for name, before in predictions.items():
        assert (again[name].labels == before.labels).all()
        assert (again[name].brier == before.brier).all()
    files = sorted((tmp_path / "answers").iterdir())
    assert len(files) == 3
    whole = bytearray(files[0].read_bytes())
    array = BytesIO()
    np.save(array, np.arange(3))
    for damaged in (whole[:50], _stretch(whole, 200, 0x55), b"", array.getvalue()):
        files[0].write_bytes(damaged)
        said.clear()
        accuracy.predict(bundles, data, tmp_path, said.append)
        assert "2 of 3 models" in said[0]
        assert files[0].read_bytes() == whole


def _stretch(whole: bytearray, at: int, flipped: int) -> bytes:
    """The same with some bits flipped in eight bytes: no valid compressed data."""
    return bytes(byte ^ flipped * (at <= i < at + 8) for i, byte in enumerate(whole))


def test_images_that_are_replaced_meanwhile_are_not_measured_as_those_before(
    bundles: list[Bundle], data: Data, tmp_path: Path
) -> None:
    test = replace(data.test, read=lambda row: data.test.read(4 if row == 3 else row))
    with pytest.raises(DataError, match="changed while the models were measured"):
        accuracy.predict(bundles, replace(data, test=test), tmp_path, say=lambda _: None)
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_image_size_sees_the_same_files(
    bundles: list[Bundle], data: Data, cache: Path, predictions: dict[str, Predictions]
) -> None:
    larger = datasets.load("digits", size=2 * SIZE, cache=cache, say=lambda _: None)
    found = accuracy.predict(bundles[:1], larger, say=lambda _: None)[bundles[0].name]
    assert (found.labels == predictions[bundles[0].name].labels).all()


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
