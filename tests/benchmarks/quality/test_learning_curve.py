from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from labelcurve.benchmarks.quality import learning_curve
from labelcurve.benchmarks.record import Curve, CurvePoint, Model, Report
from labelcurve.bundle.text import percent
from labelcurve.training.forecast import advice
from labelcurve.training.forecast.advice import TargetLabels
from labelcurve.training.forecast.law import NOISE, Points

LABELS = (2_500, 5_000, 10_000, 15_000, 25_000, 50_000)
N = 10_000


def law(n: float) -> float:
    return 0.03 + 6 * float(n**-0.45)


def models(
    measured: Report, labels: tuple[int, ...], seeds: int = 1, spread: float = 0.0
) -> tuple[list[Model], dict[str, NDArray[np.bool_]]]:
    """Models whose errors follow `law`, with a spread between seeds."""
    random = np.random.default_rng(0)
    hard = random.random(N)
    found, right = [], {}
    for n in labels:
        for seed in range(seeds):
            error = law(n) * (1 + spread * random.standard_normal())
            wrong = hard + 0.1 * random.standard_normal(N)
            name = f"m-{n}-s{seed}"
            right[name] = wrong > np.quantile(wrong, error)
            accuracy = measured.models[0].accuracy.model_copy(
                update={"accuracy": float(right[name].mean())}
            )
            update = {"name": name, "n_labels_train": n, "n_labels_val": 0, "seed": seed}
            found.append(measured.models[0].model_copy(update={**update, "accuracy": accuracy}))
    return found, right


@pytest.fixture(scope="module")
def fitted(measured: Report) -> Curve:
    (found,) = learning_curve.curves(
        *models(measured, LABELS, seeds=3, spread=0.01), targets=(0.93,)
    )
    return found


def test_the_curve_and_its_forecasts_hold_the_truth(fitted: Curve) -> None:
    assert [f.n_labels for f in fitted.next] == [55_000, 100_000, 200_000]
    assert fitted.line[0].n_labels == 2_500
    assert fitted.line[-1].n_labels == 200_000
    for forecast in (*fitted.line, *fitted.next):
        assert forecast.accuracy.low <= 1 - law(forecast.n_labels) <= forecast.accuracy.high
        assert forecast.accuracy.value == pytest.approx(1 - law(forecast.n_labels), abs=0.006)
    widths = [f.accuracy.high - f.accuracy.low for f in fitted.next]
    assert widths == sorted(widths), "what lies further away is less sure"


def test_the_spread_between_seeds_is_pooled_relative_to_the_error() -> None:
    def point(*accuracies: float) -> CurvePoint:
        return CurvePoint(n_labels=1, fraction=0.1, accuracies=accuracies, seconds=(1.0,))

    assert learning_curve.seed_spread([point(0.9), point(0.8)]) is None
    # Variances over squared means: 0.0002 / 0.11 ** 2 with one degree of freedom and
    # 0.0001 / 0.21 ** 2 with two.
    expected = ((0.0002 / 0.11**2 + 2 * 0.0001 / 0.21**2) / 3) ** 0.5
    found = learning_curve.seed_spread([point(0.9, 0.88), point(0.8, 0.79, 0.78), point(0.7)])
    assert found == pytest.approx(expected)


def test_the_covariance_counts_images_seeds_and_labels(measured: Report) -> None:
    """Two seeds at one size, one at the other, on four images."""

    def model(name: str, n: int) -> Model:
        return measured.models[0].model_copy(
            update={"name": name, "n_labels_train": n, "n_labels_val": 0}
        )

    right = {
        "a0": np.array([True, True, False, False]),
        "a1": np.array([True, False, True, False]),
        "b": np.array([True, True, True, False]),
    }
    groups = [[model("a0", 100), model("a1", 100)], [model("b", 400)]]
    points = learning_curve.measure(groups, right, 0.1)
    assert points.sizes.tolist() == [100, 400]
    assert points.errors.tolist() == [0.5, 0.25]
    assert points.n == 400
    # Wrong: (0, 0.5, 0.5, 1) and (0, 0, 0, 1), of means 0.5 and 0.25: variances 1/6 and 1/4,
    # covariance 1/6, each over four images; then noise, NOISE e (1 - e) / n, and seeds.
    first = 1 / 24 + (NOISE * 0.25 / 100 + 0.05**2) / 2
    second = 1 / 16 + NOISE * 0.1875 / 400 + 0.025**2
    expected = [[first, 1 / 24], [1 / 24, second]]
    assert points.covariance.ravel() == pytest.approx(np.ravel(expected))


def test_forecasts_labels_and_says_so(fitted: Curve) -> None:
    (target,) = fitted.targets
    truth = (6 / (0.07 - 0.03)) ** (1 / 0.45)
    assert target.n_labels is not None
    assert target.low is not None
    assert target.high is not None
    assert target.low < truth < target.high
    assert target.text.startswith("93 % needs about ")
    assert f"{target.text}." in fitted.text[0]


def test_is_checked_by_the_largest_fraction(fitted: Curve) -> None:
    check = fitted.check
    assert check is not None
    assert (check.fitted_up_to, check.n_labels, check.n_fractions) == (25_000, 50_000, 5)
    assert check.error == pytest.approx(check.predicted.value - check.measured)
    assert abs(check.error) < 0.01
    assert check.inside
    assert any("an error of" in text and "inside the interval" in text for text in fitted.text)


def test_a_failed_check_withdraws_the_forecast(measured: Report) -> None:
    found, right = models(measured, LABELS, seeds=2, spread=0.01)
    for model in found[-2:]:
        wrong = np.flatnonzero(~right[model.name])
        right[model.name] = right[model.name].copy()
        right[model.name][wrong[: len(wrong) // 3]] = True
    (curve,) = learning_curve.curves(found, right)
    assert curve.check is not None
    assert not curve.check.inside
    assert curve.text[0].startswith("This curve failed its check, so nothing is forecast: ")
    told = " ".join(curve.text[1:])
    assert not any(word in told for word in ("Checked: ", "Twice the labels", " needs about "))


def test_does_not_promise_what_the_curve_does_not_allow(measured: Report) -> None:
    (result,) = learning_curve.curves(*models(measured, LABELS), targets=(0.9999,))
    (target,) = result.targets
    assert target.text == "99.99 % takes over 8 times the labels, or cannot be reached"
    assert target.n_labels is None


def test_no_number_is_named_below_the_points(measured: Report) -> None:
    (curve,) = learning_curve.curves(*models(measured, LABELS), targets=(0.5,))
    (target,) = curve.targets
    assert target.text == "50 % needs fewer labels than the fewest measured, 2,500"
    assert (target.n_labels, target.low, target.high) == (None, None, None)


def test_a_target_that_was_measured_is_not_forecast_higher(
    measured: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The curve goes between the points, so it may ask for more labels than were enough."""
    found = TargetLabels(0.9, value=2_500, low=1_900, high=None)
    monkeypatch.setattr(advice, "labels_for", lambda *_: found)
    points = [
        CurvePoint(n_labels=n, fraction=n / 2000, accuracies=(accuracy,), seconds=(1.0,))
        for n, accuracy in ((500, 0.8), (2000, 0.98))
    ]
    measurement = Points(np.ones(2), np.ones(2), np.eye(2), 2000)
    reached = learning_curve._target(0.98, measurement, points)
    assert reached.text == (
        "98 % was reached with 2,000 labels; the curve through all points gives about 2,500"
    )
    beyond = learning_curve._target(0.99, measurement, points)
    assert beyond.text == (
        "99 % needs about 2,500 labels, at least 1,900; these points give no upper bound"
    )
    assert (beyond.n_labels, beyond.low, beyond.high) == (2_500, 1_900, None)


def test_twice_the_labels_with_their_price_and_what_the_points_leave_open(
    fitted: Curve,
) -> None:
    text = list(learning_curve.words(fitted, 0.93, (300, 0), 0.25))
    double, best = fitted.next[1].accuracy, float(np.mean(fitted.points[-1].accuracies))
    assert text[1] == (
        f"Twice the labels (100,000) would give {percent(double.value, 1)} "
        f"({percent(double.low, 1)} to {percent(double.high, 1)}), "
        f"{(double.value - 0.93) * 100:+.1f} points on the curve, which has 93.0 % at 50,000 "
        f"where {percent(best, 1)} were measured: 50,000 more labels, 12,500 at 0.25 a label."
    )
    assert "used as unlabelled data. With 50,000 labels none were left" in text[-1]
    single = fitted.model_copy(update={"seed_spread": None})
    alone = list(learning_curve.words(single, 0.93, (0, 0), None))
    assert alone[-1].startswith("Each fraction has one seed")
    assert "unlabelled" not in "".join(alone)


def test_few_fractions_are_not_fitted(measured: Report) -> None:
    (few,) = learning_curve.curves(*models(measured, LABELS[:4]))
    assert (few.line, few.next, few.check) == ((), (), None)
    assert few.text[0].startswith("No curve is fitted: that takes 5 fractions, here are 4")
    found, right = models(measured, LABELS[:5])
    (five,) = learning_curve.curves(found, right)
    assert five.check is not None
    assert five.check.n_fractions == 4
    del right[found[0].name]
    (without,) = learning_curve.curves(found, right)
    assert without.text == ("No curve is fitted: the report does not hold predictions by image.",)


def test_the_same_figures_give_the_same_curve(measured: Report) -> None:
    given = models(measured, LABELS)
    assert learning_curve.curves(*given) == learning_curve.curves(*given)


@pytest.mark.parametrize(
    ("least", "best", "levels"),
    [
        (0.8, 0.945, [0.93, 0.94, 0.95, 0.96]),
        (0.9, 0.987, [0.98, 0.985, 0.99, 0.995]),
        (0.986, 0.9995, [0.995, 0.999]),
    ],
)
def test_targets_lie_around_the_best_measured_accuracy(
    least: float, best: float, levels: list[float]
) -> None:
    points = [
        CurvePoint(n_labels=n, fraction=n / 100, accuracies=(accuracy,), seconds=(1.0,))
        for n, accuracy in ((10, least), (100, best))
    ]
    assert learning_curve._levels(points) == levels


@pytest.mark.parametrize(
    ("share", "text"), [(0.934, "93.4 %"), (0.93456, "93.46 %"), (0.9, "90 %"), (0.985, "98.5 %")]
)
def test_percent_has_as_many_digits_as_it_needs(share: float, text: str) -> None:
    assert learning_curve.short_percent(share) == text


@pytest.mark.parametrize(("value", "text"), [(1400.4, "1,400"), (100, "100"), (99.994, "99.99")])
def test_money(value: float, text: str) -> None:
    assert learning_curve.money(value) == text
