"""Choosing images to label."""

from __future__ import annotations

import numpy as np
import pytest

from labelcurve.training.learning import selection
from labelcurve.training.learning.selection import Rows

NONE = np.zeros(0, np.int64)


@pytest.fixture
def blobs() -> Rows:
    """Ten blobs of 30 rows: row i belongs to blob i // 30; the first row of each is its centre."""
    random = np.random.default_rng(0)
    centres = np.repeat(random.normal(size=(10, 16)) * 4, 30, axis=0)
    noise = random.normal(size=(300, 16)) * 0.3
    noise[::30] = 0
    return selection.unit((centres + noise).astype(np.float32))


def test_without_labels_every_cluster_has_its_most_typical_image(blobs: Rows) -> None:
    found = selection.typical(blobs, NONE, np.arange(300), 10, seed=0)
    assert sorted(found // 30) == list(range(10))
    similar = [blobs[i] @ blobs[i // 30 * 30 : i // 30 * 30 + 30].mean(axis=0) for i in found]
    others = [blobs[i] @ blobs[i // 30 * 30 : i // 30 * 30 + 30].mean(axis=0) for i in range(300)]
    assert np.mean(similar) > np.mean(others)


def test_clusters_with_a_label_come_last(blobs: Rows) -> None:
    labelled = np.arange(5) * 30
    pool = np.setdiff1d(np.arange(300), labelled)
    found = selection.typical(blobs, labelled, pool, 5, seed=0)
    assert set(found // 30) == set(range(5, 10))
    assert not set(found) & set(labelled)


def test_more_images_than_clusters(blobs: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "CLUSTERS", 10)
    found = selection.typical(blobs, NONE, np.arange(300), 300, seed=0)
    assert sorted(found) == list(range(300))
    assert len(set(found[:10] // 30)) == 10, "one of each before the second of any"


def test_the_unsure_are_chosen_and_differ(blobs: Rows) -> None:
    # Unsure in blobs 0 to 4, and most of all in blob 0: without clusters it would be all.
    probabilities = np.full((300, 2), [0.99, 0.01])
    probabilities[:150] = [0.55, 0.45]
    probabilities[:30] = [0.5, 0.5]
    found = selection.unsure(blobs, probabilities, np.arange(300), 5, seed=0)
    assert len(set(found)) == 5
    assert set(found // 30) <= set(range(5))
    assert len(set(found // 30)) >= 2
    everything = selection.unsure(blobs, probabilities, np.arange(7), 7, seed=0)
    assert sorted(everything) == list(range(7))


def test_of_clusters_without_a_label_the_largest_comes_first(blobs: Rows) -> None:
    sizes = [30, 12, 25, 8, 18]
    pool = np.concatenate([30 * blob + np.arange(size) for blob, size in enumerate(sizes)])
    found = selection.typical(blobs, NONE, pool, 5, seed=0)
    assert (found // 30).tolist() == [0, 2, 4, 1, 3]


def test_the_most_typical_image_is_nearest_to_the_others_of_its_cluster() -> None:
    angles = np.radians([0, 10, 20, 31, 45])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = selection.typical(rows, NONE, np.arange(5), 1, seed=0)
    assert found.tolist() == [2]


def test_of_unsure_images_the_least_sure_come_first(blobs: Rows) -> None:
    # The margin grows with the number of the row: of ten candidates for each, one from a blob.
    first = np.linspace(0.5, 0.99, 300)
    probabilities = np.stack([first, 1 - first], axis=1)
    found = selection.unsure(blobs, probabilities, np.arange(300)[::-1], 10, seed=0)
    assert found.tolist() == sorted(found)
    assert found.max() < 100
    few = selection.unsure(blobs, probabilities, np.arange(300), 300, seed=0)
    assert few.tolist() == list(range(300))


@pytest.mark.parametrize("distinct", [1, 2])
def test_of_copies_as_many_are_chosen_as_of_other_images(distinct: int) -> None:
    images = np.random.default_rng(0).normal(size=(distinct, 4)).astype(np.float32)
    unit = selection.unit(np.repeat(images, 12 // distinct, axis=0))
    pool = np.arange(12)
    first = selection.typical(unit, NONE, pool, 4, seed=0)
    second = selection.unsure(unit, np.full((12, 3), 1 / 3), pool, 1, seed=0)
    assert len(set(first.tolist())) == 4
    assert len(second) == 1
    # Each kind before a second image of one.
    assert set(first[:distinct] // (12 // distinct)) == set(range(distinct))


def test_the_same_seed_chooses_the_same(blobs: Rows) -> None:
    for seed in (0, 1):
        first, second = (
            selection.typical(blobs, NONE, np.arange(300), 20, seed=seed) for _ in range(2)
        )
        assert (first == second).all()


def test_features_that_never_vary_do_not_count() -> None:
    features = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    constant = np.concatenate([features, np.full((20, 1), 7, np.float32)], axis=1)
    assert selection.unit(constant) == pytest.approx(selection.unit(features))


def test_typical_images_first_then_unsure_ones_and_random_ones_where_nothing_is_better() -> None:
    assert selection.strategy(0, 0, 1000, 100) == "typical"
    assert selection.strategy(99, 10, 1000, 100) == "typical"
    assert selection.strategy(100, 10, 1000, 100) == "unsure"
    assert selection.strategy(2000, 10, 1000, 100) == "unsure"
    assert selection.strategy(2001, 10, 1000, 100) == "random"
    assert selection.strategy(100, 10, 300, 100) == "unsure"
    assert selection.strategy(100, 10, 299, 100) == "random"


def test_the_margin_is_that_of_the_two_best() -> None:
    assert selection.margin(np.array([[0.2, 0.7, 0.1], [0.4, 0.2, 0.4]])) == pytest.approx([0.5, 0])
