"""Sizes, folds and orders of labels."""

from __future__ import annotations

import numpy as np

from labelcurve.training.forecast import sampling


def test_sizes_spread_evenly_in_the_logarithm_from_a_thirty_second_to_all() -> None:
    assert sampling.sizes(720, 6).tolist() == [22, 39, 70, 126, 225, 403, 720]


def test_the_smallest_size_has_two_labels_a_class() -> None:
    assert sampling.sizes(720, 20)[0] == 40
    assert sampling.sizes(12, 10).tolist() == [12]


def test_each_stretch_of_an_order_is_about_stratified() -> None:
    labels = np.repeat([0, 1], [90, 30])
    found = labels[sampling.order(labels, np.random.default_rng(0))]
    for first in range(0, 100, 10):
        assert 1 <= found[first : first + 20].sum() <= 9
    assert sorted(sampling.order(labels, np.random.default_rng(1))) == list(range(120))


def test_folds_differ_by_one_row_at_most_in_each_class() -> None:
    labels = np.repeat([0, 1, 2], [47, 23, 7])
    fold = sampling.folds(labels, 10, np.random.default_rng(0))
    for rows in (labels >= 0, labels == 0, labels == 1, labels == 2):
        counts = np.bincount(fold[rows], minlength=10)
        assert counts.max() - counts.min() <= 1
