from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import power_law
from benchmarks.record import Curve, CurvePoint, Model, Report

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
    (found,) = power_law.curves(*models(measured, LABELS, seeds=3, spread=0.01), targets=(0.93,))
    return found


def test_finds_the_law_again(fitted: Curve) -> None:
    assert fitted.floor is not None
    assert fitted.exponent is not None
    assert fitted.floor.low <= 0.03 <= fitted.floor.high
    assert fitted.exponent.low <= 0.45 <= fitted.exponent.high
    assert fitted.seed_spread == pytest.approx(0.01, rel=0.6)
    for forecast in (*fitted.line, *fitted.next):
        assert forecast.accuracy.low <= forecast.accuracy.value <= forecast.accuracy.high
        assert forecast.accuracy.value == pytest.approx(1 - law(forecast.n_labels), abs=0.006)


def test_foretells_labels_and_says_so(fitted: Curve) -> None:
    (target,) = fitted.targets
    truth = (6 / (0.07 - 0.03)) ** (1 / 0.45)
    assert target.n_labels is not None
    assert target.low is not None
    assert target.high is not None
    assert target.low < truth < target.high
    assert target.text.startswith("93 % needs about ")
    assert target.text in fitted.text[0]


def test_is_checked_by_the_largest_fraction(fitted: Curve) -> None:
    check = fitted.check
    assert check is not None
    assert (check.fitted_up_to, check.n_labels, check.n_fractions) == (25_000, 50_000, 5)
    assert check.error == pytest.approx(check.predicted.value - check.measured)
    assert abs(check.error) < 0.01
    assert check.inside
    assert any("an error of" in text and "inside the interval" in text for text in fitted.text)


def test_does_not_promise_what_the_curve_does_not_allow(measured: Report) -> None:
    found, right = models(measured, LABELS)
    (result,) = power_law.curves(found, right, targets=(0.9999,))
    (target,) = result.targets
    assert "needs about" not in target.text
    assert "lies above where this curve levels off: " in target.text or "beyond" in target.text


def test_the_gain_is_that_from_the_labels_that_are_named(measured: Report) -> None:
    (curve,) = power_law.curves(*models(measured, LABELS))
    assert curve.floor is not None
    assert curve.scale is not None
    assert curve.exponent is not None
    at, double = (
        1 - curve.floor.value - curve.scale.value * n**-curve.exponent.value
        for n in (50_000, 100_000)
    )
    words = next(text for text in curve.text if text.startswith("Twice the labels"))
    assert f"which has {at * 100:.1f} % at 50,000" in words
    assert f"{(double - at) * 100:+.1f} points" in words


def test_a_target_that_was_measured_is_not_foretold_higher(measured: Report) -> None:
    found, right = models(measured, LABELS)
    # The curve goes between the points, so it may ask for more labels than were enough.
    best = max(model.accuracy.accuracy for model in found)
    (result,) = power_law.curves(found, right, targets=(best,))
    target = result.targets[0]
    assert "50,000 labels already" in target.text or "needs about" in target.text


def test_what_was_measured_stands_beside_no_upper_bound() -> None:
    best = power_law.Law(np.zeros(1), np.full(1, 50.0), np.ones(1))
    law = power_law.Law(np.repeat((0.0, 0.1), 50), np.full(100, 50.0), np.ones(100))
    laws = power_law.Laws(law, best)
    points = [
        CurvePoint(n_labels=n, fraction=n / 2000, accuracies=(accuracy,), seconds=(1.0,))
        for n, accuracy in ((500, 0.9), (2000, 0.96))
    ]
    text = power_law._target(0.95, best, laws, points).text
    assert text.startswith("95 % needs about 1,000 labels, at least 1,000; no upper bound")
    assert text.endswith(", but 2,000 had it")


def test_few_fractions_are_not_fitted_and_five_are_not_checked(measured: Report) -> None:
    (few,) = power_law.curves(*models(measured, LABELS[:4]))
    assert few.floor is None
    assert few.text[0].startswith("No curve is fitted: that takes 5 fractions, here are 4")
    (five,) = power_law.curves(*models(measured, LABELS[:5]), price_per_label=0.5)
    assert five.floor is not None
    assert five.check is None
    assert any("Not checked" in text for text in five.text)
    assert any("12,500 at 0.5 a label" in text for text in five.text)


def test_the_same_figures_give_the_same_curve(measured: Report) -> None:
    given = models(measured, LABELS)
    assert power_law.curves(*given) == power_law.curves(*given)


def test_a_floor_at_the_edge_has_an_interval(measured: Report) -> None:
    """The bootstrap has none: all its fits lie on the edge, too."""
    random = np.random.default_rng(0)
    labels = np.array(LABELS, np.float64)
    errors = 2.5 * labels**-0.33
    sigma = np.sqrt(errors * (1 - errors) / N)
    draws = errors + 0.01 * sigma * random.standard_normal((100, len(errors)))
    laws, best, _ = power_law.fit(labels, errors * [1, 1, 1, 1, 1, 0.97], sigma, draws)
    low, high = laws.span(lambda law: law.floor)
    assert best.floor[0] == low == 0
    assert 0.005 < high < 0.05
    # What is at the edge of the plausible lies as far from the points as it may.
    edge = laws.edge.error(25_000.0)
    assert edge.min() < best.error(25_000.0)[0] < edge.max()


def test_nothing_is_foretold_from_points_on_no_power_law(measured: Report) -> None:
    found, right = models(measured, LABELS)
    worst = {**right, found[-1].name: right[found[0].name]}
    (curve,) = power_law.curves(found, worst, targets=(0.93,))
    assert curve.misfit is not None
    assert curve.misfit > 3
    assert (curve.targets, curve.next) == ((), ())
    assert curve.line[-1].n_labels == 50_000
    assert curve.text[0].startswith("Nothing is foretold: the points lie ")
    assert not any("would give" in text for text in curve.text)


def test_a_failed_check_is_said_before_what_rests_on_it(measured: Report) -> None:
    found, right = models(measured, LABELS, seeds=2, spread=0.01)
    for model in found[-2:]:
        wrong = np.flatnonzero(~right[model.name])
        right[model.name] = right[model.name].copy()
        right[model.name][wrong[: len(wrong) // 6]] = True
    (curve,) = power_law.curves(found, right)
    assert curve.check is not None
    assert not curve.check.inside
    first = next(text for text in curve.text if not text.startswith("Nothing is foretold"))
    assert first.startswith("This curve failed its check, do not trust it")


def test_no_number_is_named_below_the_points(measured: Report) -> None:
    (curve,) = power_law.curves(*models(measured, LABELS), targets=(0.5,))
    (target,) = curve.targets
    assert target.text == "50 % needs fewer labels than the least that were measured, 2,500"
    assert (target.n_labels, target.low, target.high) == (None, None, None)
