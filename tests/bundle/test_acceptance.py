"""Thresholds for a wished accuracy, and sets for a wished coverage."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from labelcurve.bundle import acceptance
from labelcurve.bundle.acceptance import NotEnough, Threshold
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.manifest import HeldOut

Drawn = tuple[NDArray[np.float32], NDArray[np.int64]]


def drawn(random: np.random.Generator, n: int, sharp: float = 3.0) -> Drawn:
    """Calibrated answers with two classes: the first is right as often as its probability says."""
    confidence = 1 - 0.5 * random.random(n) ** sharp
    probabilities = np.stack([confidence, 1 - confidence], axis=1).astype(np.float32)
    return probabilities, (random.random(n) > confidence).astype(np.int64)


def chosen(held: HeldOut, wished: float) -> Threshold | None:
    try:
        return acceptance.threshold(held, wished)
    except NotEnough:
        return None


@pytest.mark.parametrize(("n", "wished"), [(200, 0.9), (1000, 0.98), (1000, 0.95)])
def test_the_accepted_are_as_accurate_as_wished_in_95_of_100_draws(n: int, wished: float) -> None:
    random = np.random.default_rng(0)
    probabilities, labels = drawn(random, 100_000)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    missed, forecast, real = 0, [], []
    for _ in range(400):
        found = chosen(acceptance.held_out(*drawn(random, n)), wished)
        if found is None:
            continue
        accepted = confidence >= np.float32(found.confidence)
        missed += bool(right[accepted].mean() < wished)
        forecast.append(found.coverage)
        real.append(accepted.mean())
    assert len(forecast) > 200, "it is of use, too"
    assert missed <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5
    assert abs(np.mean(forecast) - np.mean(real)) < 0.01


def test_the_chance_of_an_error_anywhere_is_that_of_tosses() -> None:
    random = np.random.default_rng(1)
    for n, wished in ((300, 0.95), (2000, 0.98)):
        allowed = np.asarray(acceptance._allowed(n, wished))
        wrong = np.cumsum(random.random((4_000, n)) > wished, axis=1)
        crossed = (wrong <= allowed[1:]).any(axis=1).mean()
        assert 0.03 < crossed < 0.06, "close to 5 %: no more than is wasted by whole numbers"


def test_without_an_error_as_many_images_are_needed_as_clopper_and_pearson_say() -> None:
    for wished, least in ((0.9, 29), (0.95, 59), (0.98, 149), (0.99, 299)):
        assert acceptance.fewest(wished) == least
        assert binom.cdf(0, least, 1 - wished) <= 0.05 < binom.cdf(0, least - 1, 1 - wished)
        sure = np.linspace(0.9, 0.99, least)
        probabilities = np.stack([sure, 1 - sure], axis=1)
        held = acceptance.held_out(probabilities, np.zeros(least, int))
        assert acceptance.threshold(held, wished).coverage == 1
        few = acceptance.held_out(probabilities[1:], np.zeros(least - 1, int))
        with pytest.raises(NotEnough, match=f"at least {least} held-out images, and the model has"):
            acceptance.threshold(few, wished)


def test_answers_that_are_too_often_wrong_are_not_accepted() -> None:
    random = np.random.default_rng(0)
    probabilities, _ = drawn(random, 500)
    held = acceptance.held_out(probabilities, (random.random(500) > 0.6).astype(int))
    with pytest.raises(NotEnough, match=r"none of the model's answers.* 98 %.* 500 held-out"):
        acceptance.threshold(held, 0.98)


def test_a_release_that_kept_nothing_and_impossible_wishes() -> None:
    with pytest.raises(NotEnough, match="train it again"):
        acceptance.threshold(None, 0.9)
    with pytest.raises(NotEnough, match="train it again"):
        acceptance.set_threshold(None, 0.9)
    held = acceptance.held_out(*drawn(np.random.default_rng(0), 50))
    for wished in (0.0, 0.49, 1.0, 98.0, float("nan")):
        with pytest.raises(LabelcurveError, match=r"not a share from 0.5 to 0.9999"):
            acceptance.threshold(held, wished)
        with pytest.raises(LabelcurveError, match=r"not a share from 0.5 to 0.9999"):
            acceptance.set_threshold(held, wished)


def test_equal_confidences_are_accepted_together() -> None:
    confidence = np.repeat([0.99, 0.9], [100, 50]).astype(np.float32)
    labels = np.zeros(150, int)
    labels[120:] = 1
    held = acceptance.held_out(np.stack([confidence, 1 - confidence], axis=1), labels)
    assert held.ranks == (100, 150)
    assert held.wrong == (0, 30)
    assert held.confidence == (0.99, 0.9)
    found = acceptance.threshold(held, 0.9)
    assert (found.confidence, found.coverage) == (0.99, 100 / 150)


def test_what_is_kept_is_bounded_and_ends_with_all() -> None:
    held = acceptance.held_out(*drawn(np.random.default_rng(0), 20_000))
    assert len(held.ranks) <= 500 == len(held.truth)
    assert held.ranks[-1] == held.truth_ranks[-1] == held.n == 20_000
    assert list(held.confidence) == sorted(held.confidence, reverse=True)


@pytest.mark.parametrize("n", [40, 2000])
def test_sets_hold_the_true_class_as_often_as_wished(n: int) -> None:
    random = np.random.default_rng(0)
    covered, sizes = [], []
    for _ in range(200):
        logits = random.normal(size=(n + 20, 5)) * 2
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        tosses = random.random((len(logits), 1))
        labels = (probabilities.cumsum(1) < tosses).sum(1).clip(max=4)
        least = acceptance.set_threshold(acceptance.held_out(probabilities[:n], labels[:n]), 0.9)
        for row, label in zip(probabilities[n:].astype(np.float32), labels[n:], strict=True):
            members = acceptance.members(row, least)
            assert members[0] == row.argmax()
            covered.append(label in members)
            sizes.append(len(members))
    assert 0.885 < np.mean(covered) < 0.93
    assert 1 < np.mean(sizes) < 4


def test_sets_need_images_too() -> None:
    held = acceptance.held_out(*drawn(np.random.default_rng(0), 18))
    with pytest.raises(NotEnough, match="need at least 19 held-out images, and the model has 18"):
        acceptance.set_threshold(held, 0.95)
    assert acceptance.set_threshold(held, 0.9) == held.truth[-1], "the last of 18"


@pytest.mark.parametrize(("wished", "least"), [(0.8, 4), (0.9, 9), (0.95, 19), (0.9975, 399)])
def test_as_many_images_as_sets_are_said_to_need_are_enough(wished: float, least: int) -> None:
    held = acceptance.held_out(*drawn(np.random.default_rng(0), least))
    assert acceptance.set_threshold(held, wished) == held.truth[-1]
    held = acceptance.held_out(*drawn(np.random.default_rng(0), least - 1))
    with pytest.raises(NotEnough, match=f"need at least {least} held-out images"):
        acceptance.set_threshold(held, wished)


def test_a_class_at_the_threshold_is_in_the_set() -> None:
    row = np.array([0.2, 0.5, 0.3], np.float32)
    assert acceptance.members(row, 0.3) == [1, 2]
    assert acceptance.members(row, 0.31) == [1]
    assert acceptance.members(row, 0.6) == [1]


def test_what_is_kept_and_chosen_of_a_few_answers() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    held = acceptance.held_out(probabilities, np.array([0, 1, 0, 0]))
    assert (held.n, held.ranks, held.truth_ranks) == (4, (1, 2, 3, 4), (1, 2, 3, 4))
    assert held.confidence == (0.9, 0.8, 0.7, 0.6)
    assert held.wrong == (0, 1, 1, 1)
    np.testing.assert_allclose(held.truth, (0.9, 0.7, 0.6, 0.2), atol=1e-6)
    # The third of (4 + 1) * 0.6, and the fourth of (4 + 1) * 0.61.
    assert acceptance.set_threshold(held, 0.6) == held.truth[2]
    assert acceptance.set_threshold(held, 0.61) == held.truth[3]
    with pytest.raises(NotEnough, match=r"hold the true class in 81 % need at least 5 held-out"):
        acceptance.set_threshold(held, 0.81)


def test_with_the_fewest_images_only_all_of_them_without_an_error_will_do() -> None:
    for wished in (0.9, 0.95, 0.98):
        n = acceptance.fewest(wished)
        assert acceptance._allowed(n, wished) == (*[-1] * n, 0)
        assert set(acceptance._allowed(n - 1, wished)) == {-1}
    more = acceptance._allowed(600, 0.98)
    assert list(more) == sorted(more)
    assert 149 < more.index(0) < more.index(1) < more.index(2) < 600
