"""Options of `plan` that no type can check."""

from __future__ import annotations

from typing import Any

import pytest

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.embedding_options import PlanOptions, parse_plan


def test_the_bar_is_the_price_over_what_a_point_is_worth() -> None:
    plain = PlanOptions(data="digits", more=2000)
    assert plain.bar == 2.0
    assert PlanOptions(data="digits", more=2000, least_gain=0.0).bar == 0.0
    given = PlanOptions(data="digits", more=2000, price_per_label=0.05, value_per_point=80)
    assert given.bar == pytest.approx(100 / 80)


def test_arguments_become_options() -> None:
    found = parse_plan(["--data", "photos", "--more", "2000", "--target", "0.9"])
    assert (found.data, found.more, found.target) == ("photos", 2000, 0.9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"more": 0}, "--more 0: allowed are 1 and more"),
        ({"price_per_label": -1.0}, "--price-per-label -1: allowed are values above 0"),
        ({"value_per_point": 5.0}, "--value-per-point needs --price-per-label"),
        (
            {"value_per_point": 5.0, "price_per_label": 1.0, "least_gain": 2.0},
            "--value-per-point 5 and --least-gain 2 both say .* give one of them",
        ),
        (
            {"value_per_point": 1e-300, "price_per_label": 1e300},
            "--price-per-label 1e.300 and --value-per-point 1e-300: labels would pay from no",
        ),
        ({"seed": 2**32}, "--seed 4294967296: allowed are 0 to 4294967295"),
        ({"image_size": 4}, "--image-size 4: allowed are 8 to 1024 pixels"),
        ({"least_gain": -2.0}, "--least-gain -2: allowed are 0 to 100 points"),
        ({"target": 90.0}, r"--target 90: allowed are values between 0 and 1 \(0.9 is 90 %\)"),
    ],
)
def test_an_impossible_value_is_refused_with_what_is_allowed(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(LabelcurveError, match=message):
        PlanOptions(**{"data": "digits", "more": 2000, **given})
