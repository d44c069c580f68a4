"""Test accuracy of every bundle, from file bytes through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import classification_report, confusion_matrix

from benchmarks.record import Accuracy, ClassScore
from benchmarks.session import Session
from bundle.errors import DataError, ImageError
from bundle.machine import cores
from bundle.preprocess import prepare
from bundle.store import Bundle
from training.data import Data, Split

CHUNK = 256
"""Images decoded at a time: bounds memory whatever the size of the split."""


@dataclass(frozen=True)
class Predictions:
    """What one bundle says of the test split."""

    labels: NDArray[np.int64]
    """[N] predicted classes."""
    margin: NDArray[np.float32]
    """[N] probability of the first class minus that of the second."""
    true_probability: NDArray[np.float32]
    """[N] probability of the true class."""


def check(bundles: Sequence[Bundle], data: Data) -> None:
    """Refuses data on which the bundles cannot be scored.

    Raises:
        DataError: a bundle knows other classes than the data, or the test split is empty.
    """
    if not len(data.test.labels):
        raise DataError(f"the data set {data.name} has no test images: bench needs them")
    for bundle in bundles:
        names = bundle.manifest.class_names
        if names != data.class_names:
            raise DataError(
                f"the model {bundle.name} was trained on {bundle.manifest.dataset.name} with the "
                f"classes {_few(names)}, but --data {data.name} has {_few(data.class_names)}: "
                "name the data that it was trained on, or leave the model out with --only"
            )


def predict(
    bundles: Sequence[Bundle], test: Split, say: Callable[[str], None] = print
) -> dict[str, Predictions]:
    """Runs every bundle on the original bytes of every test image.

    Returns:
        Predictions by bundle name.

    Raises:
        DataError: the bytes of a test image cannot be used.
    """
    n_cores = cores()
    sessions = {bundle.name: Session(bundle, n_cores) for bundle in bundles}
    sizes = {bundle.name: bundle.manifest.preprocessing.size for bundle in bundles}
    parts: dict[str, list[NDArray[np.float32]]] = {bundle.name: [] for bundle in bundles}
    n = len(test.labels)
    with ThreadPoolExecutor(n_cores) as pool:
        for size in sorted(set(sizes.values())):
            step = max(1, n // 4 // CHUNK)
            for index, images in enumerate(_chunks(test, size, pool)):
                for name, session in sessions.items():
                    if sizes[name] == size:
                        parts[name].append(session.probabilities(images))
                if (index + 1) % step == 0:
                    say(f"  {min(n, (index + 1) * CHUNK):,} of {n:,} test images at {size} px")
    return {name: _predictions(np.concatenate(part), test.labels) for name, part in parts.items()}


def _chunks(test: Split, size: int, pool: ThreadPoolExecutor) -> Iterator[NDArray[np.uint8]]:
    def read(index: int) -> NDArray[np.uint8]:
        try:
            return prepare(test.read(index), size)
        except ImageError as error:
            raise DataError(f"test image {index} cannot be used: {error}") from error

    n = len(test.labels)
    for start in range(0, n, CHUNK):
        yield np.stack(list(pool.map(read, range(start, min(n, start + CHUNK)))))


def _predictions(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> Predictions:
    two = np.sort(probabilities, axis=1)[:, -2:]
    return Predictions(
        labels=probabilities.argmax(axis=1).astype(np.int64),
        margin=two[:, 1] - two[:, 0],
        true_probability=probabilities[np.arange(len(labels)), labels],
    )


def score(bundle: Bundle, predictions: Predictions, data: Data) -> Accuracy:
    """Scores of a bundle on the test split, beside what its manifest says."""
    truth, names = data.test.labels, data.class_names
    classes = list(range(len(names)))
    report = classification_report(
        truth,
        predictions.labels,
        labels=classes,
        target_names=names,
        output_dict=True,
        zero_division=0,
    )
    right = int(np.sum(predictions.labels == truth))
    accuracy = right / len(truth)
    interval = binomtest(right, len(truth)).proportion_ci(method="wilson")
    weighted = report["weighted avg"]
    said = bundle.manifest.test.accuracy if bundle.manifest.test else None
    return Accuracy(
        n=len(truth),
        accuracy=accuracy,
        accuracy_low=float(interval.low),
        accuracy_high=float(interval.high),
        f1=weighted["f1-score"],
        precision=weighted["precision"],
        recall=weighted["recall"],
        loss=float(-np.log(np.maximum(predictions.true_probability, 1e-12)).mean()),
        per_class={
            name: ClassScore(
                precision=report[name]["precision"],
                recall=report[name]["recall"],
                f1=report[name]["f1-score"],
                support=int(report[name]["support"]),
            )
            for name in names
        },
        confusion=tuple(
            tuple(int(count) for count in row)
            for row in confusion_matrix(truth, predictions.labels, labels=classes)
        ),
        manifest_accuracy=said,
        difference=None if said is None else accuracy - said,
        same_data=bundle.manifest.dataset.hash == data.hash,
    )


def doubts(scores: Mapping[str, Accuracy]) -> list[str]:
    """What the reader must be told about these figures, by model name."""
    found = []
    other = [name for name, score in scores.items() if not score.same_data]
    if other:
        found.append(
            f"{', '.join(other)}: this is NOT the data of the training (its hash is another). "
            "Test images may have been training images: do not trust this accuracy"
        )
    for name, score in scores.items():
        apart = round(abs(score.difference or 0) * score.n)
        if score.same_data and apart:
            found.append(
                f"{name}: test accuracy {score.accuracy:.4f} differs from the manifest's "
                f"{score.manifest_accuracy:.4f} on the same data ({apart} of {score.n:,} images)"
            )
    return found


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown}, ... ({len(names)} in all)"
