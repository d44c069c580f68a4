"""What unlabelled photos add to a linear head on frozen features.

`python -m benchmarks.training_runs.propagation --data FOLDER` splits a folder of class folders five
times into four fifths and one, stratified, as `benchmarks.training_runs.photos` does. It fits the
linear head on some of the labels of the four fifths, and then, as `train` does with few labels,
trains it on the other photos as unlabelled data. The fifth is for test, not for model selection.
The last line on stdout is one JSON document.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import tyro
from numpy.typing import NDArray

from labelcurve.benchmarks.harness.provenance import conditions, write
from labelcurve.benchmarks.training_runs import photos
from labelcurve.bundle import command
from labelcurve.bundle.manifest import Metrics
from labelcurve.training.learning.metrics import scores
from labelcurve.training.models.linear_head import LinearHead, fit_linear
from labelcurve.training.models.propagation import Pool
from labelcurve.training.runtime.device import FP32_CPU, hardware

LABELS = (photos.PER_CLASS, 0.1, 0.25, 0.5)
"""Numbers a class, and shares of the four fifths."""
KINDS = ("labels alone", "with the others")


@dataclass
class Propagation(photos.Photos):
    """Accuracy of a linear head on photos, with and without photos that have no label."""


@dataclass(frozen=True)
class Figure:
    """One number of labels, over the splits."""

    labels: str
    kind: str
    """One of `KINDS`."""
    n_labels: tuple[int, ...]
    n_unlabelled: tuple[int, ...]
    accuracy: tuple[float, ...]
    balanced_accuracy: tuple[float, ...]
    refused: tuple[bool, ...]
    """Whether cross-validation rejected the other photos; the figure is that with them."""
    cpu_seconds: tuple[float, ...]
    """CPU time of choosing and fitting, without the features."""


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.training_runs.propagation`."""
    name = "python -m benchmarks.training_runs.propagation"
    options = tyro.cli(Propagation, args=arguments, prog=name)
    options.check()
    found = photos.embedded(options)
    document = {
        "hardware": hardware(FP32_CPU),
        **conditions(__file__, ("torch", "timm", "scikit-learn", "scipy", "numpy")),
        **options.about(found.labels),
        "splits": photos.SPLITS,
        "figures": [
            asdict(figure)
            for labels in LABELS
            for figure in figures(found.features, found.labels, labels)
        ],
    }
    write(options.out, document)


def figures(
    found: NDArray[np.float32], classes: NDArray[np.int32], labels: float
) -> tuple[Figure, Figure]:
    """The figures of both kinds at one number of labels.

    Args:
        found: features, float32 [N, D].
        classes: [N]
        labels: a number a class, from 1 on, or a share below that.
    """
    rows: tuple[list[_Row], list[_Row]] = [], []
    for seed, (learn, test) in enumerate(photos.splits_of(classes)):
        labelled = chosen_of(classes, learn, labels, seed)
        for kind, row in zip(
            rows, _heads(found, classes, labelled, learn, test, seed), strict=True
        ):
            kind.append(row)
        shown = ", ".join(f"{kind[-1].metrics.accuracy:.4f}" for kind in rows)
        print(f"{_name(labels)}, split {seed}: {' and '.join(KINDS)} {shown}", flush=True)
    one, two = (_over_splits(_name(labels), *pair) for pair in zip(KINDS, rows, strict=True))
    return one, two


def chosen_of(
    classes: NDArray[np.int32], learn: NDArray[np.int64], labels: float, seed: int
) -> NDArray[np.int64]:
    """The labelled rows: so many of each class, or that share."""
    random = np.random.default_rng(seed)
    parts = []
    for label in range(int(classes.max()) + 1):
        own = random.permutation(learn[classes[learn] == label])
        parts.append(own[: int(labels if labels >= 1 else labels * len(own))])
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Row:
    """One kind on one split."""

    metrics: Metrics
    seconds: float
    n_labels: int
    n_unlabelled: int
    refused: bool = False


def _heads(
    found: NDArray[np.float32],
    classes: NDArray[np.int32],
    labelled: NDArray[np.int64],
    learn: NDArray[np.int64],
    test: NDArray[np.int64],
    seed: int,
) -> tuple[_Row, _Row]:
    """Both kinds, evaluated on `test`; the labels of the other rows of `learn` are not read."""

    def judged(head: LinearHead) -> Metrics:
        return scores(head.logits(found[test]).astype(np.float64), classes[test])

    began = time.process_time()
    labels = classes[labelled]
    head = fit_linear(found[labelled], labels, int(classes.max()) + 1, seed=seed)
    fitted = time.process_time()
    every = found[np.concatenate([labelled, np.setdiff1d(learn, labelled)])]
    pool = Pool(every, labels)
    trial = pool.tried(head, seed)
    more = pool.learned(head)
    learned = time.process_time()
    n = len(labelled)
    return (
        _Row(judged(head), fitted - began, n, 0),
        _Row(judged(more), learned - began, n, more.n_unlabelled, bool(trial and trial.worse)),
    )


def _over_splits(labels: str, kind: str, rows: Sequence[_Row]) -> Figure:
    return Figure(
        labels=labels,
        kind=kind,
        n_labels=tuple(row.n_labels for row in rows),
        n_unlabelled=tuple(row.n_unlabelled for row in rows),
        accuracy=tuple(row.metrics.accuracy for row in rows),
        balanced_accuracy=tuple(row.metrics.balanced_accuracy or 0.0 for row in rows),
        refused=tuple(row.refused for row in rows),
        cpu_seconds=tuple(round(row.seconds, 1) for row in rows),
    )


def _name(labels: float) -> str:
    return f"{labels:.0f} a class" if labels >= 1 else f"{labels:.0%}"


if __name__ == "__main__":
    command.enter(main, extra="photos")
