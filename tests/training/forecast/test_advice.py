"""Answers on curves whose future is known."""

from __future__ import annotations

import numpy as np
import pytest

from labelcurve.training.forecast import advice as module
from labelcurve.training.forecast.advice import (
    Estimate,
    TargetLabels,
    advise,
    rounded,
)
from labelcurve.training.forecast.law import Points
from labelcurve.training.forecast.sentences import sentences

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
    assert "fewer than 2,000 labels more the gain (" in unsure.would_tell


def test_a_curve_that_bends_fails_its_check_and_no_forecast_is_given() -> None:
    errors = points().errors.copy()
    errors[-1] = errors[-2] * 1.3
    advice = advise(Points(SIZES, errors, 0.002**2 * np.eye(7), 800), 2000)
    assert advice.answer == "cannot tell"
    assert advice.failed_check is not None
    assert f"{(1 - errors[-1]) * 100:.1f} % were measured" in advice.failed_check
    first, second, third = sentences(advice, 0.05)
    assert first.startswith("No forecast is given, since the curve fails its check: from up to 225")
    assert second.startswith("They cost 100.00 (0.05 a label). The measurements hold")
    assert third.startswith("What would settle it: label about 400 more")
    assert advice.accuracy_now.value == 1 - errors[-1]  # not what the law makes of it
    assert advice.n_now == 720
    failed = Points(SIZES, errors, 0.002**2 * np.eye(7), 800)
    assert advise(failed, 2000, target=0.9).target is None
    assert advise(failed, 300).would_tell == (
        "no smaller sample that can be named, since the curve follows no law so far"
    )


@pytest.mark.parametrize("kept", [1, 2])
def test_fewer_than_three_sizes_are_no_curve(kept: int) -> None:
    few = Points(SIZES[-kept:], points().errors[-kept:], 0.004**2 * np.eye(kept), 800)
    advice = advise(few, 2000, target=0.9)
    assert advice.answer == "cannot tell"
    assert advice.target is None
    measured = 1 - few.errors[-1]
    assert advice.accuracy_now.value == pytest.approx(measured)
    assert advice.accuracy_now.low == pytest.approx(measured - 1.96 * 0.004)
    first, _, third = sentences(advice, None)
    assert f"measured at {kept} number{'s' * (kept > 1)} of labels only (" in first
    assert f"{measured * 100:.1f} % with 720)" in first
    assert third.startswith("What would settle it: 5 labels and more a class")


def test_beyond_eight_times_the_labels_nothing_is_forecast_but_a_target_is() -> None:
    assert advise(points(), 7 * 800).answer == "yes"
    advice = advise(points(), 7 * 800 + 1, target=0.88)
    assert advice.answer == "cannot tell"
    first, _, third = sentences(advice, None)
    assert "6,401 labels are more than 8 times the 800 that there are" in first
    assert third.startswith("What would settle it: ask for 5,600 more labels or fewer (--more)")
    assert advice.target is not None
    assert advice.target.value == pytest.approx(1300, rel=0.15)
    assert max(n for n, _ in advice.line) == pytest.approx(800)


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


def test_numbers_of_labels_have_two_significant_digits() -> None:
    assert [rounded(n) for n in (7, 96.4, 1296, 12_949)] == [7, 96, 1300, 13_000]


def test_the_labels_that_would_settle_it_are_further_ones() -> None:
    """The interval is 8 points wide and the bar 2 away: 800 labels are 1.118 times too few."""
    told = module._would_tell(800, 2000, Estimate(4.0, 0.0, 8.0), 2.0)
    assert told == "label about 95 more, chosen at random, and run `plan` again"
    # Never less than a tenth of the present labels, and never more than could be bought.
    few = module._would_tell(800, 2000, Estimate(4.0, 0.2, 7.8), 2.0)
    assert few.startswith("label about 80 more")
    assert module._would_tell(800, 90, Estimate(4.0, 0.0, 8.0), 2.0).startswith("no smaller sample")
    # Nor as many as would be bought: bought labels cannot settle whether to buy them.
    assert module._would_tell(800, 80, Estimate(4.0, 0.2, 7.8), 2.0) == (
        "no smaller sample, since that takes about 80 more labels, and 80 labels would be bought"
    )


def test_where_nothing_is_wrong_nothing_can_be_gained() -> None:
    errors = np.array([0.02, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0])
    perfect = Points(SIZES, errors, (0.5 / 800) ** 2 * np.eye(7), 800)
    advice = advise(perfect, 2000)
    assert advice.failed_check is None
    assert advice.answer == "no"


def test_a_target_that_the_fewest_labels_reach_is_not_said_to_need_them() -> None:
    target = advise(points(), 2000, target=0.3).target
    assert target == TargetLabels(0.3, rounded(SIZES[0]), 0, rounded(SIZES[0]), fewest=True)
    wide = Points(SIZES, points().errors, 0.03**2 * np.eye(7), 800)
    near = advise(wide, 2000, target=0.52).target
    assert near is not None
    assert near.low == 0
    assert not near.fewest
