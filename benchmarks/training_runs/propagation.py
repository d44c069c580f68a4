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
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelcurve.benchmarks.harness.provenance import parsed, write
from labelcurve.benchmarks.training_runs import photos
from labelcurve.bundle import command
from labelcurve.training.models.linear_head import LinearHead, fit_linear
from labelcurve.training.models.propagation import Pool

LABELS = ("10 a class", "10%", "25%", "50%")
KINDS = ("labels alone", "with the others")


@dataclass
class Propagation(photos.Photos):
    """Accuracy of a linear head on photos, with and without photos that have no label."""


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.training_runs.propagation`."""
    options = parsed(Propagation, arguments)
    found = photos.embedded(options)
    made = [figures(found.features, found.labels, labels) for labels in LABELS]
    document = {"splits": photos.SPLITS, "figures": [figure for both in made for figure in both]}
    write(options.out, options.about(found.labels) | document)


def figures(
    found: NDArray[np.float32], classes: NDArray[np.int32], labels: str
) -> list[dict[str, Any]]:
    """The figures of both kinds, of features [N, D], at one number of `photos.chosen_of`."""
    rows = []
    for seed, (learn, test) in enumerate(photos.splits_of(classes)):
        labelled = photos.chosen_of(classes, learn, labels, seed)
        rows.append(heads(found, classes, labelled, learn, test, seed))
        shown = ", ".join(f"{row['accuracy']:.4f}" for row in rows[-1])
        print(f"{labels}, split {seed}: {' and '.join(KINDS)} {shown}", flush=True)
    return [
        photos.over_splits(of_kind, labels=labels, kind=kind)
        for kind, of_kind in zip(KINDS, zip(*rows, strict=True), strict=True)
    ]


def heads(
    found: NDArray[np.float32],
    classes: NDArray[np.int32],
    labelled: NDArray[np.int64],
    learn: NDArray[np.int64],
    test: NDArray[np.int64],
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both kinds, evaluated on `test`; the labels of the other rows of `learn` are not read.

    `refused` says whether cross-validation rejected the other photos; the figure is that with
    them. `cpu_seconds` counts choosing and fitting, without the features.
    """
    began = time.process_time()
    labels = classes[labelled]
    head = fit_linear(found[labelled], labels, int(classes.max()) + 1, seed=seed)
    fitted = time.process_time()
    pool = Pool(found[np.concatenate([labelled, np.setdiff1d(learn, labelled)])], labels)
    trial = pool.tried(head, seed)
    more = pool.learned(head)
    learned = time.process_time()

    def row(head: LinearHead, seconds: float, n_unlabelled: int, refused: bool) -> dict[str, Any]:
        return {
            "n_labels": len(labelled),
            "n_unlabelled": n_unlabelled,
            **photos.judged(head.logits(found[test]).astype(np.float64), classes[test]),
            "refused": refused,
            "cpu_seconds": round(seconds, 1),
        }

    refused = bool(trial and trial.worse)
    return row(head, fitted - began, 0, False), row(
        more, learned - began, more.n_unlabelled, refused
    )


if __name__ == "__main__":
    command.enter(main, extra="photos")
