"""Answers on curves whose future is known."""

from __future__ import annotations

import numpy as np
import pytest

from labelcurve.training.forecast import advice as module
from labelcurve.training.forecast.advice import Estimate, advise, rounded, sentences
from labelcurve.training.forecast.law import Points

SIZES = np.array([22.0, 39, 70, 126, 225, 403, 720])


def points(exponent: float = 0.35, floor: float = 0.0) -> Points:
    # Errors from 0.5 at 22 labels on, moved alike by the test images.
    errors = floor + (0.5 - floor) * (SIZES / SIZES[0]) ** -exponent
    return Points(SIZES, errors, 0.004**2 * np.ones((7, 7)) + 0.001**2 * np.eye(7), 800)


def test_a_steep_curve_says_yes() -> None:
    advice = advise(points(), 2000)
    assert advice.answer == "yes"
    # 0.5 * (n / 22) ** -0.35 is 0.1422 at 800 and 0.0917 at 2,800.
    assert advice.accuracy_now.value == pytest.approx(0.8578, abs=0.006)
    assert advice.gain.value == pytest.approx(5.05, abs=1.0)
    assert advice.gain.low <= 5.05 <= advice.gain.high
    assert advice.would_tell is None


def test_a_level_curve_says_no() -> None:
    advice = advise(points(exponent=1.5, floor=0.2), 2000)
    assert advice.answer == "no"
    assert advice.gain.high < 2


def test_a_bar_at_the_gain_itself_cannot_be_told() -> None:
    gain = advise(points(), 2000).gain.value
    assert advise(points(), 2000, least_gain=gain / 4).answer == "yes"
    assert advise(points(), 2000, least_gain=gain * 3).answer == "no"
    unsure = advise(points(), 2000, least_gain=gain)
    assert unsure.answer == "cannot tell"
    assert unsure.probability == pytest.approx(0.5, abs=0.05)
    assert unsure.would_tell is not None
    assert "too close" in unsure.would_tell


def test_a_curve_that_bends_fails_its_check_and_no_forecast_is_given() -> None:
    errors = points().errors.copy()
    errors[-1] = errors[-2] * 1.3
    advice = advise(Points(SIZES, errors, 0.002**2 * np.eye(7), 800), 2000)
    assert advice.answer == "cannot tell"
    assert advice.failed_check is not None
    assert f"{(1 - errors[-1]) * 100:.1f} % were measured" in advice.failed_check
    assert "No forecast is given" in sentences(advice, None)[0]


def test_a_target_gives_labels_and_one_beyond_reach_none() -> None:
    # 0.5 * (n / 22) ** -0.35 = 0.12 at n = 1,302
    target = advise(points(), 2000, target=0.88).target
    assert target is not None
    assert target.value == pytest.approx(1300, rel=0.15)
    assert target.low is not None
    assert target.low < 1300
    far = advise(points(), 2000, target=0.999).target
    assert far is not None
    assert far.value is None


def test_three_sentences_with_a_price_only_where_one_is_given() -> None:
    advice = advise(points(), 2000)
    with_price, without = sentences(advice, 0.05), sentences(advice, None)
    assert len(with_price) == len(without) == 3
    assert "2,000 more labels (2,800 in all)" in with_price[0]
    assert "100.00 (0.05 a label)" in with_price[1]
    assert "cost" not in " ".join(without)


def test_numbers_of_labels_have_two_significant_digits() -> None:
    assert [rounded(n) for n in (7, 96.4, 1296, 12_949)] == [7, 96, 1300, 13_000]


def test_what_would_tell_are_further_labels_not_those_there_are() -> None:
    """The interval is 8 points wide and the bar 2 away: 800 labels are 1.118 times too few."""
    told = module._would_tell(800, 2000, Estimate(4.0, 0.0, 8.0), 2.0)
    assert told == "label about 95 more, chosen at random, and run `plan` again"
    # Never less than a tenth of those there are, and never more than could be bought.
    few = module._would_tell(800, 2000, Estimate(4.0, 0.2, 7.8), 2.0)
    assert few.startswith("label about 80 more")
    assert module._would_tell(800, 90, Estimate(4.0, 0.0, 8.0), 2.0).startswith("no smaller sample")
