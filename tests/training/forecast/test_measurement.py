"""Cross-validated curves of digits; sizes, folds and orders of labels."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from labelcurve.training.data.source import Index
from labelcurve.training.forecast import head, measurement
from labelcurve.training.forecast.law import NOISE
from labelcurve.training.forecast.measurement import Measured


def digits(n: int) -> tuple[head.Rows, Index]:
    found = load_digits()
    rows = np.random.default_rng(0).permutation(len(found.target))[:n]
    return found.data[rows].astype(np.float32), found.target[rows]


def test_no_image_is_tested_by_a_model_that_learned_from_it() -> None:
    # Features that only identify the image: one that was trained on would be right, and one that
    # was not is right only by chance.
    labels = np.random.default_rng(0).integers(0, 2, 300)
    features = head.standardise(np.eye(300, dtype=np.float32))
    measured = measurement.cross_validate(features, labels, 2)
    assert measured.wrong.shape == (10, 300, len(measured.sizes))
    assert (measured.errors > 0.38).all()


def test_the_curve_falls_and_ends_at_nine_tenths_of_the_labels() -> None:
    features, labels = digits(500)
    shares: list[float] = []
    measured = measurement.cross_validate(
        head.standardise(features), labels, 10, progress=shares.append
    )
    assert measured.sizes[-1] == 450
    assert measured.errors[0] > 0.2
    assert measured.errors[-1] < 0.1
    assert shares == pytest.approx(np.arange(1, 101) / 100)


def test_the_more_labels_the_fewer_repetitions() -> None:
    features, labels = digits(1797)
    some, every = features[:, :2], np.repeat(features[:, :2], 3, axis=0)
    few = measurement.cross_validate(head.standardise(some), labels, 10)
    many = measurement.cross_validate(head.standardise(every), np.repeat(labels, 3), 10)
    assert (few.subsets, many.subsets) == (100, 30)
    assert (len(few.wrong), len(many.wrong)) == (10, 3)


def test_the_same_seed_measures_the_same() -> None:
    features, labels = digits(200)
    one, two, other = (
        measurement.cross_validate(head.standardise(features), labels, 10, seed=seed)
        for seed in (0, 0, 1)
    )
    assert (one.wrong == two.wrong).all()
    assert (one.wrong != other.wrong).any()


def test_a_given_test_split_is_used_as_it_is_and_all_labels_are_trained_on() -> None:
    features, labels = digits(700)
    scaled = head.standardise(features, features[:300])
    measured = measurement.hold_out(scaled[:300], labels[:300], 10, (scaled[300:], labels[300:]))
    assert measured.sizes[-1] == measured.n == 300
    assert measured.subsets == len(measured.wrong) == 100
    fitted = head.fit(scaled[:300], labels[:300], 10, measured.penalty)
    error = (fitted.scores(scaled[300:]).argmax(axis=1) != labels[300:]).mean()
    assert measured.errors[-1] == pytest.approx(error, abs=0.005)


def test_the_covariance_has_the_parts_of_images_labels_and_subsets() -> None:
    # Two images, one always wrong: the variance of the mean of two is 0.5 / 2.
    wrong = np.zeros((3, 2, 2), np.bool_)
    wrong[:, 0, :] = True
    points = Measured(np.array([10, 100]), wrong, 100, subsets=30, penalty=1).points()
    shared = 0.5 * (1 / 2 + NOISE / 100)
    half_an_image = 0.25 / 4
    subsets = NOISE * 0.25 * (1 / 10 - 1 / 100) / 30
    assert points.covariance[0, 1] == pytest.approx(shared)
    assert points.covariance[1, 1] == pytest.approx(shared + half_an_image)
    assert points.covariance[0, 0] == pytest.approx(shared + half_an_image + subsets)


def test_a_single_test_image_says_hardly_anything() -> None:
    wrong = np.zeros((3, 1, 2), np.bool_)
    points = Measured(np.array([10, 100]), wrong, 100, subsets=30, penalty=1).points()
    # As where every image is right: half an image. There is no variance between images.
    assert points.covariance[1, 1] == pytest.approx(0.25)
    assert points.covariance[0, 1] == 0


def test_wrong_labels_take_a_higher_penalty() -> None:
    features, labels = digits(600)
    random = np.random.default_rng(0)
    noisy = np.where(np.arange(600) % 2 == 0, random.integers(0, 10, 600), labels)
    scaled = head.standardise(features)
    assert measurement.best_penalty(scaled, labels, 10, random) <= 1
    assert measurement.best_penalty(scaled, noisy, 10, random) == 3
    assert measurement.cross_validate(scaled, noisy, 10).penalty == 3
    few, test = (scaled[50:], noisy[50:], 10), (scaled[:50], labels[:50])
    best = measurement.best_penalty(*few, np.random.default_rng(0))
    assert measurement.hold_out(*few, test).penalty == best


def test_equal_penalties_leave_the_lowest() -> None:
    features = np.repeat([[-1.0], [1.0]], 20, axis=0).astype(np.float32)
    labels = np.repeat([0, 1], 20)
    assert measurement.best_penalty(features, labels, 2, np.random.default_rng(0)) == 0.3


def test_sizes_spread_evenly_in_the_logarithm_from_a_thirty_second_to_all() -> None:
    assert measurement.chosen_sizes(720, 6).tolist() == [22, 39, 70, 126, 225, 403, 720]


def test_the_smallest_size_has_two_labels_a_class() -> None:
    assert measurement.chosen_sizes(720, 20)[0] == 40
    assert measurement.chosen_sizes(12, 10).tolist() == [12]


def test_each_stretch_of_an_order_is_about_stratified() -> None:
    labels = np.repeat([0, 1], [90, 30])
    found = labels[measurement.stratified(labels, np.random.default_rng(0))]
    for first in range(0, 100, 10):
        assert 1 <= found[first : first + 20].sum() <= 9
    assert sorted(measurement.stratified(labels, np.random.default_rng(1))) == list(range(120))


def test_folds_differ_by_one_row_at_most_in_each_class() -> None:
    labels = np.repeat([0, 1, 2], [47, 23, 7])
    fold = measurement.folds(labels, 10, np.random.default_rng(0))
    for rows in (labels >= 0, labels == 0, labels == 1, labels == 2):
        counts = np.bincount(fold[rows], minlength=10)
        assert counts.max() - counts.min() <= 1
