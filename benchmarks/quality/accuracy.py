"""Test accuracy of every bundle, from file bytes through ONNX Runtime."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from labelcurve.benchmarks.harness.session import Session
from labelcurve.benchmarks.harness.statistics import bootstrap_f1, estimate, pack
from labelcurve.benchmarks.quality import accepting, calibration
from labelcurve.benchmarks.record import Accuracy, ClassScore
from labelcurve.bundle import files, preprocess
from labelcurve.bundle.errors import DataError, ImageError
from labelcurve.bundle.machine import cores, cpu_name
from labelcurve.bundle.store import Bundle
from labelcurve.bundle.text import listed
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.decoded.digests import of_image
from labelcurve.training.data.source import Index

CHUNK = 256
"""Images decoded at a time; bounds memory."""
FORMAT = 1
"""Version of the cached answers, part of their key."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of a bundle on the test split."""

    labels: NDArray[np.int64]
    """[N] predicted classes."""
    margin: NDArray[np.float32]
    """[N] probability of the first class minus that of the second."""
    true_probability: NDArray[np.float32]
    """[N] probability of the true class."""
    confidence: NDArray[np.float32]
    """[N] probability of the first class."""
    brier: NDArray[np.float32]
    """[N] squared distance of the probabilities from the truth, summed over the classes."""

    def right(self, truth: Index) -> NDArray[np.bool_]:
        """bool [N]: which images are classified correctly."""
        found: NDArray[np.bool_] = self.labels == truth
        return found


def check(bundles: Sequence[Bundle], data: Data) -> None:
    """Refuse data on which the bundles cannot be scored.

    Raises:
        DataError: the classes of a bundle and the data differ, or the test split is empty.
    """
    if not len(data.test.labels):
        raise DataError(
            f"the data set {data.name} has no test images, which bench needs: in test/, by a "
            "column `split`, or five images of a class, of which one is held out"
        )
    for bundle in bundles:
        names = bundle.manifest.class_names
        if names != data.class_names:
            raise DataError(
                f"the model {bundle.name} was trained on {bundle.manifest.dataset.name} with the "
                f"classes {listed(names, 4)}, but --data {data.name} has "
                f"{listed(data.class_names, 4)}: "
                "name the data that it was trained on, or leave the model out with --only"
            )


def predict(
    bundles: Sequence[Bundle],
    data: Data,
    cache: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Predictions]:
    """Run every bundle on the original bytes of every test image.

    Predictions, by bundle name, are cached by the versions of bundle, data, preprocessing and ONNX
    Runtime, and by the processor; without a folder `cache` they are not.

    Raises:
        DataError: the bytes of a test image cannot be used, or are not those that were loaded.
    """
    test = data.test
    kept = {bundle.name: _kept(bundle, data, cache) for bundle in bundles}
    found: dict[str, Predictions] = {}
    for name, path in kept.items():
        if path and (old := _read(path, len(test.labels))):
            found[name] = old
    fresh = {bundle.name: bundle for bundle in bundles if bundle.name not in found}
    if len(fresh) < len(bundles):
        say(f"  {len(bundles) - len(fresh)} of {len(bundles)} models: predictions are cached")
    n_cores = cores()
    sessions = {name: Session(bundle, n_cores) for name, bundle in fresh.items()}
    sizes = {name: bundle.manifest.preprocessing.size for name, bundle in fresh.items()}
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in fresh}
    n = len(test.labels)
    step = max(1, n // 4 // CHUNK)
    with ThreadPoolExecutor(n_cores) as pool:
        for size in sorted(set(sizes.values())):
            clock = perf_counter()
            for index, images in enumerate(_chunks(data, size, pool)):
                for name, session in sessions.items():
                    if sizes[name] == size:
                        parts[name].append(session.probabilities(images))
                if (index + 1) % step == 0:
                    done = min(n, (index + 1) * CHUNK)
                    left = (perf_counter() - clock) / done * (n - done)
                    say(f"  {done:,} of {n:,} test images at {size} px, {left:.0f} s left")

    for name, part in parts.items():
        found[name] = _predictions(np.concatenate(part), test.labels)
        if path := kept[name]:
            _write(path, found[name])
    return {bundle.name: found[bundle.name] for bundle in bundles}


def _kept(bundle: Bundle, data: Data, cache: Path | None) -> Path | None:
    if cache is None:
        return None
    parts = (bundle.version, data.hash, preprocess.VERSION, onnxruntime.__version__, cpu_name())
    key = hashlib.sha256("\n".join(map(str, (FORMAT, *parts))).encode()).hexdigest()[:20]
    return cache / "answers" / f"{bundle.name}-{key}.npz"


def _read(path: Path, n: int) -> Predictions | None:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            found = Predictions(**{field.name: arrays[field.name] for field in fields(Predictions)})
    except Exception:  # of zipfile, zlib and NumPy: whatever is wrong with it, it is written anew
        return None
    return found if len(found.labels) == n else None


def _write(path: Path, predictions: Predictions) -> None:
    """Write atomically; ignore a cache that cannot be written."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **asdict(predictions))
        files.replace(path, buffer.getbuffer())


def _chunks(data: Data, size: int, pool: ThreadPoolExecutor) -> Iterator[NDArray[np.uint8]]:
    test = data.test

    def read(index: int, digest: np.void) -> NDArray[np.uint8]:
        try:
            content = test.read(index)
            image = preprocess.decode(content, size=data.size)
            # Else figures of other images would be reported, and cached, under the hash of these.
            if of_image(np.asarray(image)) != digest.tobytes():
                raise DataError(
                    f"{test.where(index)} changed while the models were measured: run the same "
                    "command again once nothing writes there any more, or with another --cache if "
                    "nothing has"
                )
            same = size == data.size
            return preprocess.resize(image, size) if same else preprocess.prepare(content, size)
        except ImageError as error:
            raise DataError(f"test image {index} cannot be used: {error}") from error

    n = len(test.labels)
    for start in range(0, n, CHUNK):
        rows = range(start, min(n, start + CHUNK))
        yield np.stack(list(pool.map(read, rows, test.digests[np.array(rows)])))


def _predictions(probabilities: NDArray[np.float32], labels: Index) -> Predictions:
    two = np.sort(probabilities, axis=1)[:, -2:]
    true = probabilities[np.arange(len(labels)), labels]
    return Predictions(
        labels=probabilities.argmax(axis=1).astype(np.int64),
        margin=two[:, 1] - two[:, 0],
        true_probability=true,
        confidence=two[:, 1],
        brier=(probabilities**2).sum(axis=1) - 2 * true + 1,
    )


def score(bundle: Bundle, predictions: Predictions, data: Data) -> Accuracy:
    """Score a bundle on the test split and compare with its manifest."""
    truth, names = data.test.labels, data.class_names
    classes = list(range(len(names)))
    *scores, support = precision_recall_fscore_support(
        truth, predictions.labels, labels=classes, zero_division=0
    )
    precision, recall, f1 = (float(np.average(each, weights=support)) for each in scores)
    correct = predictions.right(truth)
    right = int(correct.sum())
    accuracy = right / len(truth)
    interval = binomtest(right, len(truth)).proportion_ci(method="wilson")
    confusion = confusion_matrix(truth, predictions.labels, labels=classes)
    f1_interval = estimate(f1, bootstrap_f1(confusion))
    said = bundle.manifest.test.accuracy if bundle.manifest.test else None
    return Accuracy(
        n=len(truth),
        accuracy=accuracy,
        accuracy_low=float(interval.low),
        accuracy_high=float(interval.high),
        f1=f1,
        precision=precision,
        recall=recall,
        loss=float(-np.log(np.maximum(predictions.true_probability, 1e-12)).mean()),
        per_class={
            name: ClassScore(precision=p, recall=r, f1=f, support=n)
            for name, p, r, f, n in zip(
                names, *(each.tolist() for each in (*scores, support)), strict=True
            )
        },
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        manifest_accuracy=said,
        difference=None if said is None else accuracy - said,
        same_data=bundle.manifest.dataset.hash == data.hash,
        f1_low=f1_interval.low,
        f1_high=f1_interval.high,
        calibration=calibration.measure(
            predictions.confidence, correct, predictions.true_probability, predictions.brier
        ),
        accepting=accepting.measure(bundle.manifest.held_out, predictions.confidence, correct),
        right=pack(correct),
    )


def doubts(scores: Mapping[str, Accuracy], resized: Collection[str] = ()) -> list[str]:
    """List warnings about these figures.

    Args:
        resized: models of another image size than the data were read for.
    """
    found = []
    other = [name for name, score in scores.items() if not score.same_data]
    if other:
        found.append(
            f"{', '.join(other)}: this is NOT the data of the training (its hash differs). "
            "Test images may have been training images: do not trust this accuracy"
        )
    if apart := [name for name in other if name in resized]:
        found.append(
            f"{', '.join(apart)}: of another --image-size, for which large JPEGs are decoded at "
            "another scale; that changes the hash, and which images are held out where the data "
            "have no test split. Measure each size on its own, with --only"
        )
    for name, score in scores.items():
        differ = round(abs(score.difference or 0) * score.n)
        if score.same_data and differ:
            found.append(
                f"{name}: test accuracy {score.accuracy:.4f} differs from the manifest's "
                f"{score.manifest_accuracy:.4f} on the same data ({differ} of {score.n:,} images)"
            )
    return found
