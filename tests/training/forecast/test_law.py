"""The posterior on curves whose future is known."""

from __future__ import annotations

import numpy as np
import pytest

from labelcurve.training.forecast.law import DRAWS, NOISE, SHIFTS, Floats, Points, forecast

SIZES = np.array([22.0, 39, 70, 126, 225, 403, 720])


def error(n: Floats, floor: float, exponent: float) -> Floats:
    return np.asarray(floor + 0.5 * (n / SIZES[0]) ** -exponent)


@pytest.mark.parametrize(("floor", "exponent"), [(0.05, 0.6), (0.15, 0.8), (0.0, 0.4)])
def test_a_power_law_without_noise_is_recovered(floor: float, exponent: float) -> None:
    points = Points(SIZES, error(SIZES, floor, exponent), 1e-8 * np.eye(7), 800)
    samples = forecast(points, (800, 2800), noise=False)
    low, median, high = np.percentile(samples, (2.5, 50, 97.5), axis=0)
    truth = error(np.array([800.0, 2800.0]), floor, exponent)
    assert median == pytest.approx(truth, abs=0.006)
    assert ((low <= truth) & (truth <= high)).all()


def test_a_curve_that_falls_slowly_at_first_is_forecast_by_its_shift() -> None:
    shift = 2 * SIZES[0]
    points = Points(SIZES, error(SIZES + shift, 0.1, 0.9), 1e-6 * np.eye(7), 800)
    truth = error(np.array(2800 + shift), 0.1, 0.9)
    with_shift, without = (
        np.median(forecast(points, (2800,), noise=False, departures={1e-6: 1}, shifts=shifts))
        for shifts in (SHIFTS, (0.0,))
    )
    assert with_shift == pytest.approx(truth, abs=0.005)
    assert without < truth - 0.01


def test_the_interval_holds_the_truth_of_simulated_curves() -> None:
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        floor, exponent = random.uniform(0, 0.2), np.exp(random.normal(np.log(0.55), 0.4))
        true = error(SIZES, floor, exponent)
        # Test images move all sizes alike, subsets each for itself.
        covariance = 0.01**2 * np.ones((7, 7)) + np.diag((0.3 * true / np.sqrt(SIZES)) ** 2 / 10)
        noise = random.multivariate_normal(np.zeros(7), covariance)
        points = Points(SIZES, np.clip(true + noise, 0.001, 1), covariance, 800)
        low, high = np.percentile(forecast(points, (2800,), noise=False), (2.5, 97.5))
        inside += low <= error(np.array(2800.0), floor, exponent) <= high
    assert 0.92 * 200 <= inside <= 200


def test_points_off_the_law_widen_the_interval() -> None:
    true = error(SIZES, 0.1, 0.6)
    covariance = np.diag((0.01 * true) ** 2)

    def width(errors: Floats) -> float:
        samples = forecast(Points(SIZES, errors, covariance, 800), (2800,))
        low, high = np.percentile(samples, (2.5, 97.5))
        return float(high - low)

    assert width(true * (1 + 0.08 * np.sin(np.arange(7)))) > 1.5 * width(true)


@pytest.mark.parametrize("share", [0.01, 0.1])
def test_far_from_the_points_a_curve_departs_by_the_share_of_the_error(share: float) -> None:
    points = Points(SIZES, error(SIZES, 0.15, 0.9), 1e-8 * np.eye(7), 800)
    # The law is the same at both sizes, its departures are independent.
    one, other = forecast(points, (10**9, 10**12), noise=False, departures={share: 1}).T
    expected = share * 0.9 * points.errors[-1]
    assert (one - other).std() == pytest.approx(2**0.5 * expected, rel=0.05)


def test_the_noise_of_one_draw_widens_the_forecast_of_one_model() -> None:
    points = Points(SIZES, error(SIZES, 0.1, 0.6), 1e-8 * np.eye(7), 800)
    without = float(forecast(points, (2800,), noise=False).std())
    both = float(forecast(points, (2800,)).std())
    e = float(points.errors[-1])
    assert both**2 - without**2 == pytest.approx(NOISE * e * (1 - e) / 2800, rel=0.3)


def test_no_image_wrong_gives_errors_between_0_and_1() -> None:
    points = Points(SIZES, np.zeros(7), 1e-6 * np.eye(7), 800)
    samples = forecast(points, (800, 2800))
    assert samples.shape == (DRAWS, 2)
    assert samples.min() >= 0
    assert np.median(samples) < 0.001


def test_the_same_seed_gives_the_same_samples() -> None:
    points = Points(SIZES, error(SIZES, 0.1, 0.6), 1e-4 * np.eye(7), 800)
    assert (forecast(points, (2800,)) == forecast(points, (2800,))).all()
    assert (forecast(points, (2800,)) != forecast(points, (2800,), seed=1)).any()


def test_one_more_label_shares_the_noise_of_the_others_and_many_more_have_their_own() -> None:
    points = Points(SIZES, error(SIZES, 0.1, 0.6), 1e-8 * np.eye(7), 800)
    e = float(points.errors[-1])
    variance = NOISE * e * (1 - e)

    def gained(n: int) -> float:
        """The variance that noise adds to the difference between n labels and 800."""
        now, then = forecast(points, (800, n)).T
        without, later = forecast(points, (800, n), noise=False).T
        return float((then - now).var() - (later - without).var())

    independent = variance * (0.5 / 800 + 1 / 801)
    assert gained(801) < 0.05 * independent
    assert 0.1 * independent < gained(840) < 0.6 * independent
    assert gained(3200) == pytest.approx(variance * (0.5 / 800 + 1 / 3200), rel=0.1)
