from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from sklearn.datasets import load_digits

from labelcurve.benchmarks.study import documents
from labelcurve.benchmarks.training_runs import propagation

PIXELS, CLASSES = load_digits(return_X_y=True)
PIXELS, CLASSES = PIXELS[:500].astype(np.float32), CLASSES[:500].astype(np.int32)


@pytest.fixture(scope="module")
def made() -> tuple[propagation.Figure, propagation.Figure]:
    return propagation.figures(PIXELS, CLASSES, 0.1)


def test_images_without_labels_help_on_the_same_fifths(
    made: tuple[propagation.Figure, propagation.Figure],
) -> None:
    alone, more = made
    assert [figure.kind for figure in made] == ["labels alone", "with the others"]
    assert alone.n_labels == more.n_labels
    assert max(alone.n_labels) <= 40
    assert set(alone.n_unlabelled) == {0}
    assert [a + b for a, b in zip(more.n_labels, more.n_unlabelled, strict=True)] == [400] * 5
    assert np.mean(more.accuracy) > np.mean(alone.accuracy) + 0.01


def test_no_other_label_is_read() -> None:
    learn, test = np.arange(400), np.arange(400, 500)
    labelled = propagation.chosen_of(CLASSES, learn, 4, 0)
    assert np.bincount(CLASSES[labelled]).tolist() == [4] * 10
    first = propagation._heads(PIXELS, CLASSES, labelled, learn, test, 0)
    changed = CLASSES.copy()
    others = np.setdiff1d(learn, labelled)
    changed[others] = (changed[others] + 1) % 10
    second = propagation._heads(PIXELS, changed, labelled, learn, test, 0)
    assert [row.metrics for row in first] == [row.metrics for row in second]
    assert [row.n_unlabelled for row in first] == [0, 360]


def test_the_table_shows_both_kinds(made: tuple[propagation.Figure, propagation.Figure]) -> None:
    about = {"data": "photos", "images": 500, "classes": 10, "extractor": "timm:x", "splits": 5}
    where = {"hardware": "a CPU", "packages": {}, "date": "", "command": "", "load_average": 0.0}
    text = documents.render(
        "propagation", figures=[asdict(each) for each in made], image_size=8, **about, **where
    )
    n = max(made[0].n_labels)
    assert f"| 10% ({n}) | labels alone | " in text
    assert f"| 10% ({n}) | and {max(made[1].n_unlabelled)} photos without labels | " in text
    assert "in 0 of 5 runs" in text
