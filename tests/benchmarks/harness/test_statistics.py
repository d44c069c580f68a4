from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from labelcurve.benchmarks.harness import statistics
from labelcurve.benchmarks.record import Report


def test_mcnemar_against_the_textbook() -> None:
    """Of 20 images that only one model has right, 15 are the second's: p of a fair coin."""
    a = np.array([True] * 5 + [False] * 15 + [True] * 80)
    b = np.array([False] * 5 + [True] * 15 + [True] * 80)
    found = statistics.compare("a", "b", a, b)
    assert (found.only_a, found.only_b, found.n) == (5, 15, 100)
    # 2 * P(at most 5 of 20) = 2 * 21,700 / 2 ** 20
    assert found.p_value == pytest.approx(43_400 / 2**20)
    assert found.difference.value == pytest.approx(0.1)
    # Variance of the paired difference: (20 / 100 - 0.1 ** 2) / 100.
    assert found.difference.low == pytest.approx(0.1 - 1.959964 * 0.0019**0.5)
    assert found.difference.high == pytest.approx(0.1 + 1.959964 * 0.0019**0.5)
    assert statistics.compare("a", "b", b, a).difference.value == pytest.approx(-0.1)
    assert statistics.compare("a", "a", a, a).p_value == 1.0


def test_bits_come_back() -> None:
    right = np.random.default_rng(0).random(355) < 0.7
    assert (statistics.unpack(statistics.pack(right), 355) == right).all()


def test_f1_is_that_of_scikit_learn_and_lies_in_its_interval() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 4, 500)
    said = np.where(random.random(500) < 0.8, truth, random.integers(0, 4, 500))
    confusion = confusion_matrix(truth, said)
    value = float(statistics.weighted_f1(confusion))
    assert value == pytest.approx(f1_score(truth, said, average="weighted"))
    # Against a bootstrap over the images themselves.
    cell = truth * 4 + said
    drawn = [np.bincount(cell[random.integers(0, 500, 500)], minlength=16) for _ in range(1000)]
    f1 = statistics.weighted_f1(np.reshape(drawn, (1000, 4, 4)))
    found = statistics.estimate(value, statistics.bootstrap_f1(confusion))
    expected = statistics.estimate(value, f1)
    assert found.low == pytest.approx(expected.low, abs=0.005)
    assert found.high == pytest.approx(expected.high, abs=0.005)


def test_an_interval_ends_at_the_percentiles_of_its_samples() -> None:
    found = statistics.estimate(7.0, np.arange(1001) / 1000)
    assert (found.value, found.low, found.high) == (7.0, 0.025, 0.975)


def test_each_number_of_labels_is_compared_with_the_next(measured: Report) -> None:
    pairs = [(c.a, c.b) for c in measured.comparisons]
    assert pairs == [
        ("digits-10", "digits-50"),
        ("digits-50", "digits-100"),
        ("digits-10", "digits-100"),
    ]
    for c in measured.comparisons:
        scores = {model.name: model.accuracy.accuracy for model in measured.models}
        assert c.difference.value == pytest.approx(scores[c.b] - scores[c.a])


def test_a_variant_is_compared_with_the_default_at_the_same_number_of_labels(
    measured: Report,
) -> None:
    few, many = measured.models[0], measured.models[-1]
    models = [
        few.model_copy(update={"preset": "default", "extractor": "x"}),
        few.model_copy(update={"name": "later", "preset": "default", "extractor": "x", "seed": 1}),
        many.model_copy(update={"preset": "default", "extractor": "x"}),
        few.model_copy(update={"name": "other", "preset": "reference", "extractor": "x"}),
    ]
    right = {model.name: np.ones(4, np.bool_) for model in models}
    pairs = [(c.a, c.b) for c in statistics.comparisons(models, right)]
    assert pairs == [("digits-10", "digits-100"), ("other", "digits-10")]
