"""The learning curve of a report: the law that `plan` forecasts with, its check, and its summary.

The curve is fitted to the mean error of each fraction. Their uncertainty comes from the test images
(the same for every model, so that errors are correlated), from the spread between seeds, pooled
over the fractions, and from the draw of the labels; `training.forecast.law` does the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from math import hypot

import numpy as np
from numpy.typing import NDArray

from labelcurve.benchmarks.record import (
    Check,
    Curve,
    CurvePoint,
    Estimate,
    Forecast,
    Model,
    Target,
    timed,
)
from labelcurve.bundle.text import percent
from labelcurve.training.forecast import advice
from labelcurve.training.forecast.advice import rounded
from labelcurve.training.forecast.law import NOISE, Floats, Points, forecast

MIN_FRACTIONS = 5
"""Fewer points do not determine the curvature."""
REACH = 4.0
"""Multiple of the most labels measured up to which the curve is drawn."""
LINE = 60
"""Points of the drawn curve."""
LEVELS = (
    *(0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98),
    *(0.985, 0.99, 0.995, 0.999),
)
"""Accuracies to forecast by default."""


def curves(
    models: Sequence[Model],
    right: Mapping[str, NDArray[np.bool_]],
    targets: Sequence[float] = (),
    price_per_label: float | None = None,
) -> tuple[Curve, ...]:
    """Fit a curve per variant, the default first.

    Args:
        models: every model of the report.
        right: bool [N] by model name: which test images it classifies correctly.
        targets: accuracies to forecast the labels for; by default near the measured ones.
        price_per_label: for the summary.
    """
    variants = sorted({m.variant for m in models}, key=lambda v: (v != "default", v))
    return tuple(
        _curve(v, [m for m in models if m.variant == v], right, targets, price_per_label)
        for v in variants
    )


def _curve(
    variant: str,
    models: Sequence[Model],
    right: Mapping[str, NDArray[np.bool_]],
    targets: Sequence[float],
    price: float | None,
) -> Curve:
    groups = [
        [model for model in models if model.n_labels == n]
        for n in sorted({model.n_labels for model in models})
    ]
    points = tuple(
        CurvePoint(
            n_labels=group[0].n_labels,
            fraction=group[0].fraction,
            accuracies=tuple(model.accuracy.accuracy for model in group),
            seconds=tuple(model.train_seconds for model in timed(group)),
            shared=all(model.shared for model in group),
        )
        for group in groups
    )
    spread = seed_spread(points)
    bare = Curve(variant=variant, points=points, seed_spread=spread)
    if len(points) < MIN_FRACTIONS:
        text = f"No curve is fitted: that takes {MIN_FRACTIONS} fractions, here are {len(points)}. "
        text += "`train` without --fraction makes six."
        return bare.model_copy(update={"text": (text,)})
    if not all(model.name in right for model in models):
        text = "No curve is fitted: the report does not hold predictions by image."
        return bare.model_copy(update={"text": (text,)})
    measured = measure(groups, right, spread)
    most = points[-1].n_labels
    at, *further = _forecasts(measured, [most * factor for factor in (1.0, 1.1, 2.0, 4.0)])
    line = np.geomspace(points[0].n_labels, most * REACH, LINE)
    curve = bare.model_copy(
        update={
            "line": _forecasts(measured, line.tolist()),
            "next": tuple(further),
            "targets": tuple(_target(a, measured, points) for a in targets or _levels(points)),
            "check": _check(measured, spread),
        }
    )
    unlabelled = [group[0].n_unlabelled for group in groups]
    sentences = tuple(words(curve, at.accuracy.value, unlabelled, price))
    return curve.model_copy(update={"text": sentences})


def seed_spread(points: Sequence[CurvePoint]) -> float | None:
    """Relative standard deviation of the error between seeds, pooled over the fractions."""
    parts = []
    for point in points:
        errors = 1 - np.asarray(point.accuracies)
        if len(errors) > 1 and errors.mean() > 0:
            parts += [(float(errors.var(ddof=1) / errors.mean() ** 2), len(errors) - 1)]
    degrees = sum(d for _, d in parts)
    return float(np.sqrt(sum(v * d for v, d in parts) / degrees)) if degrees else None


def measure(
    groups: Sequence[Sequence[Model]], right: Mapping[str, NDArray[np.bool_]], spread: float | None
) -> Points:
    """Mean errors over seeds by number of labels, fewest first, with their covariance.

    `right` is bool [N] by model name, `spread` that of `seed_spread`.
    """
    # [N, F]: the share of a fraction's seeds that misclassify the image.
    wrong = np.stack(
        [np.mean([~right[model.name] for model in group], axis=0) for group in groups], axis=1
    )
    sizes = np.array([group[0].n_labels for group in groups], np.float64)
    errors, seeds = wrong.mean(axis=0), np.array([len(group) for group in groups])
    between = ((spread or 0.0) * errors) ** 2 + NOISE * errors * (1 - errors) / sizes
    covariance = np.cov(wrong, rowvar=False) / len(wrong) + np.diag(between / seeds)
    return Points(sizes, errors, covariance, int(sizes[-1]))


def _forecasts(points: Points, labels: Sequence[float]) -> tuple[Forecast, ...]:
    accuracies = 1 - forecast(points, labels, noise=False)
    return tuple(
        Forecast(n_labels=round(n), accuracy=_estimate(column))
        for n, column in zip(labels, accuracies.T, strict=True)
    )


def _estimate(samples: Floats) -> Estimate:
    return Estimate(**asdict(advice.estimate(samples)))


def _check(points: Points, spread: float | None) -> Check:
    """Forecast the largest fraction from the others."""
    top, last = float(points.sizes[-1]), float(points.sizes[-2])
    before = replace(points.upto(last), n=int(last))
    expected = _estimate(1 - forecast(before, (top,))[:, 0])
    own = advice.DEVIATIONS * (spread or 0.0) * (1 - expected.value)  # of the measured point
    low = max(0.0, expected.value - hypot(expected.value - expected.low, own))
    high = min(1.0, expected.value + hypot(expected.high - expected.value, own))
    measured = 1 - float(points.errors[-1])
    return Check(
        fitted_up_to=before.n,
        n_fractions=len(before.sizes),
        n_labels=round(top),
        predicted=Estimate(value=expected.value, low=low, high=high),
        measured=measured,
        error=expected.value - measured,
        inside=low <= measured <= high,
    )


def _levels(points: Sequence[CurvePoint]) -> list[float]:
    """Choose the two levels below the best measured accuracy, and the two above."""
    best = max(float(np.mean(point.accuracies)) for point in points)
    least = float(np.mean(points[0].accuracies))
    below = [level for level in LEVELS if least < level <= best]
    return below[-2:] + [level for level in LEVELS if level > best][:2]


def _target(accuracy: float, measured: Points, points: Sequence[CurvePoint]) -> Target:
    found = advice.labels_for(measured, accuracy)
    share = short_percent(accuracy)
    reached = next((p.n_labels for p in points if np.mean(p.accuracies) >= accuracy), None)
    if found.value is None:
        text = f"{share} takes over {advice.REACH:g} times the labels, or cannot be reached"
        if found.low is not None:
            text += f"; {found.low:,} labels are the least compatible with the data"
    elif found.value <= rounded(points[0].n_labels):
        text = f"{share} needs fewer labels than the fewest measured, {points[0].n_labels:,}"
        return Target(accuracy=accuracy, n_labels=None, low=None, high=None, text=text)
    elif reached is not None and found.value > reached:
        text = f"{share} was reached with {reached:,} labels"
        text += f"; the curve through all points gives about {found.value:,}"
    elif found.high is None:
        text = f"{share} needs about {found.value:,} labels, at least {found.low:,}"
        text += "; these points give no upper bound"
    else:
        text = f"{share} needs about {found.value:,} labels, {found.low:,} to {found.high:,}"
    return Target(
        accuracy=accuracy, n_labels=found.value, low=found.low, high=found.high, text=text
    )


def words(curve: Curve, at: float, unlabelled: Sequence[int], price: float | None) -> Iterator[str]:
    """Summarise a fitted curve in sentences; one that failed its check forecasts nothing.

    `at` is the accuracy of the curve at the most labels, `price` that of a label; the numbers of
    unlabelled images are by fraction.
    """
    check, most = curve.check, curve.points[-1]
    assert check is not None
    predicted = check.predicted
    checked = (
        f"from {check.n_fractions} fractions up to {check.fitted_up_to:,} labels the curve "
        f"forecasts {short_percent(predicted.value)} ({short_percent(predicted.low)} to "
        f"{short_percent(predicted.high)}) at {check.n_labels:,}; measured "
        f"{short_percent(check.measured)}, an error of {check.error * 100:+.2f} points"
    )
    if check.inside:
        yield from _forecast_words(curve, at, price)
        yield f"Checked: {checked}, inside the interval."
    else:
        yield (
            f"This curve failed its check, so nothing is forecast: {checked}, OUTSIDE the interval."
        )
    if any(unlabelled):
        text = "The curve holds for a fixed pool of images: with few labels, the other training "
        text += "images were used as unlabelled data"
        if not unlabelled[-1]:
            text += f". With {most.n_labels:,} labels none were left, so that the "
            text += "last point has another recipe and may lie off the curve"
        yield f"{text}."
    if curve.seed_spread is None:
        yield (
            "Each fraction has one seed, so the intervals do not include the spread between runs "
            "and are too narrow."
        )


def _forecast_words(curve: Curve, at: float, price: float | None) -> Iterator[str]:
    most, double = curve.points[-1], curve.next[1]
    best = float(np.mean(most.accuracies))
    yield from (f"{target.text}." for target in curve.targets)
    gain = f"{(double.accuracy.value - at) * 100:+.1f} points on the curve"
    text = (
        f"Twice the labels ({rounded(double.n_labels):,}) would give "
        f"{percent(double.accuracy.value, 1)} ({percent(double.accuracy.low, 1)} to "
        f"{percent(double.accuracy.high, 1)}), {gain}, which has {percent(at, 1)} at "
        f"{most.n_labels:,}"
    )
    if percent(best, 1) != percent(at, 1):
        text += f" where {percent(best, 1)} were measured"
    text += f": {most.n_labels:,} more labels"
    if price is not None:
        text += f", {money(most.n_labels * price)} at {price:g} a label"
    yield f"{text}."


def short_percent(share: float) -> str:
    """A share with as many digits as needed, two at most: `93.4 %`."""
    return f"{f'{share * 100:.2f}'.rstrip('0').rstrip('.')} %"


def money(value: float) -> str:
    """An amount: `1,400`, `0.60`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"
