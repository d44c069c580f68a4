from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from benchmarks import statistics
from benchmarks.record import Report


def test_mcnemar_against_the_textbook() -> None:
    """Of 20 images that one model alone has right, 15 are the second's: p of a fair coin."""
    a = np.array([True] * 5 + [False] * 15 + [True] * 80)
    b = np.array([False] * 5 + [True] * 15 + [True] * 80)
    found = statistics.compare("a", "b", a, b)
    assert (found.only_a, found.only_b, found.n) == (5, 15, 100)
    assert found.p_value == pytest.approx(0.0414, abs=1e-4)
    assert found.difference.value == pytest.approx(0.1)
    assert 0 < found.difference.low < 0.1 < found.difference.high
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
    found = statistics.estimate(value, statistics.bootstrap_f1(confusion))
    assert found.low < value < found.high
    # About two standard errors of a share of 500 on each side.
    assert 0.03 < found.high - found.low < 0.1


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
