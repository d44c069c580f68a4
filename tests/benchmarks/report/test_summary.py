"""The sentence that a report opens with."""

from __future__ import annotations

import pytest

from labelcurve.benchmarks.record import Check, Curve, Estimate, Forecast, Report
from labelcurve.benchmarks.report import summary


def curve(report: Report, double: float, *, inside: bool) -> Report:
    """A report whose curve forecasts an accuracy for twice the labels."""
    last = report.models[-1]

    def estimate(value: float) -> Estimate:
        return Estimate(value=value, low=value - 0.01, high=value + 0.01)

    n = last.n_labels
    fitted = Curve(
        variant=last.variant,
        points=(),
        next=tuple(Forecast(n_labels=times * n, accuracy=estimate(double)) for times in (1, 2, 4)),
        check=Check(
            fitted_up_to=n // 2,
            n_fractions=5,
            n_labels=n,
            predicted=estimate(0.9),
            measured=0.9,
            error=0.0,
            inside=inside,
        ),
    )
    return report.model_copy(update={"curves": (fitted,)})


@pytest.mark.parametrize(
    ("double", "inside", "said"),
    [
        (0.999, True, "Twice as many would give 99.9 % (95 % interval 98.9 to 100.9 %)."),
        (0.2, True, "(95 % interval 19.0 to 21.0 %), no more than was measured."),
        (0.999, False, "There is no forecast for more: the curve failed its check."),
    ],
)
def test_the_answer_forecasts_where_the_check_allows(
    measured: Report, double: float, inside: bool, said: str
) -> None:
    text = summary.answer(curve(measured, double, inside=inside))
    assert text.endswith(said)
    assert f"{measured.models[-1].n_labels:,} labels give an accuracy of " in text


def test_too_few_fractions_give_no_forecast(measured: Report) -> None:
    assert "a curve needs five fractions" in summary.answer(measured)
