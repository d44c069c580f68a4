from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from labelcurve.benchmarks.study import documents
from labelcurve.benchmarks.training_runs import photos, propagation

PIXELS, CLASSES = load_digits(return_X_y=True)
PIXELS, CLASSES = PIXELS[:500].astype(np.float32), CLASSES[:500].astype(np.int32)


@pytest.fixture(scope="module")
def made() -> list[dict[str, Any]]:
    return propagation.figures(PIXELS, CLASSES, "10%")


def test_images_without_labels_help_on_the_same_fifths(made: list[dict[str, Any]]) -> None:
    alone, more = made
    assert [figure["kind"] for figure in made] == ["labels alone", "with the others"]
    assert alone["n_labels"] == more["n_labels"]
    assert max(alone["n_labels"]) <= 40
    assert set(alone["n_unlabelled"]) == {0}
    assert np.add(more["n_labels"], more["n_unlabelled"]).tolist() == [400] * 5
    assert more["mean"] > alone["mean"] + 0.01


def test_no_other_label_is_read() -> None:
    learn, test = np.arange(400), np.arange(400, 500)
    labelled = photos.chosen_of(CLASSES, learn, "4 a class", 0)
    assert np.bincount(CLASSES[labelled]).tolist() == [4] * 10
    first = propagation.heads(PIXELS, CLASSES, labelled, learn, test, 0)
    changed = CLASSES.copy()
    others = np.setdiff1d(learn, labelled)
    changed[others] = (changed[others] + 1) % 10
    second = propagation.heads(PIXELS, changed, labelled, learn, test, 0)
    for one, other in zip(first, second, strict=True):
        assert one | {"cpu_seconds": 0} == other | {"cpu_seconds": 0}
    assert [row["n_unlabelled"] for row in first] == [0, 360]


def test_the_table_shows_both_kinds(made: list[dict[str, Any]]) -> None:
    about = {"data": "photos", "images": 500, "classes": 10, "extractor": "timm:x", "splits": 5}
    where = {"hardware": "a CPU", "packages": {}, "date": "", "command": "", "load_average": 0.0}
    text = documents.render("propagation", figures=made, image_size=8, **about, **where)
    n, others = max(made[0]["n_labels"]), max(made[1]["n_unlabelled"])
    assert f"| 10% ({n}) | labels alone | " in text
    assert f"| 10% ({n}) | and {others} photos without labels | " in text
    assert "in 0 of 5 runs" in text
