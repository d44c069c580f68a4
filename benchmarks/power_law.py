"""The learning curve: a power law over labels, what it foretells, and a check of that.

error(n) = floor + scale * n ** -exponent, the form that test errors follow over a wide range of
data (Hestness et al. 2017; Rosenfeld et al. 2020). It is fitted by weighted least squares on the
mean error of each fraction. Intervals come from a bootstrap over test images (the same images for
every model) and over seeds (a normal deviate as wide as the pooled spread between seeds), widened
where the points lie further from the curve than that explains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, log10

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import Check, Curve, CurvePoint, Estimate, Forecast, Model, Target
from benchmarks.statistics import LEVEL

MIN_FRACTIONS = 5
"""A law of three unknowns from fewer points says nothing of its own uncertainty."""
RESAMPLES = 1000
EXPONENTS = np.geomspace(0.02, 3, 800)
REACH = 4.0
"""Times the most labels measured: beyond it no number of labels is named."""
LEVELS = (
    *(0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98),
    *(0.985, 0.99, 0.995, 0.999),
)
"""Accuracies that people ask for."""


@dataclass(frozen=True)
class Law:
    """Parameters of the power law, each an array over bootstrap samples."""

    floor: NDArray[np.float64]
    scale: NDArray[np.float64]
    exponent: NDArray[np.float64]

    def error(self, n: float) -> NDArray[np.float64]:
        """Error at `n` labels, a value a sample."""
        result: NDArray[np.float64] = self.floor + self.scale * n**-self.exponent
        return result

    def labels(self, error: float) -> NDArray[np.float64]:
        """Labels for an error, a value a sample; infinite where the floor lies above it."""
        above = error - self.floor
        with np.errstate(divide="ignore", over="ignore"):
            ratio = np.where(above > 0, self.scale / np.maximum(above, 1e-12), inf)
            result: NDArray[np.float64] = ratio ** (1 / self.exponent)
        return result


@dataclass(frozen=True)
class _Sampled:
    """What a fit needs of one variant: fractions in rising order."""

    labels: NDArray[np.float64]
    """[F]"""
    errors: NDArray[np.float64]
    """[F] means over seeds."""
    sigma: NDArray[np.float64]
    """[F] their standard errors."""
    draws: NDArray[np.float64]
    """[R, F] resampled means."""


def curves(
    models: Sequence[Model],
    right: Mapping[str, NDArray[np.bool_]],
    targets: Sequence[float] = (),
    price_per_label: float | None = None,
) -> tuple[Curve, ...]:
    """A curve for each variant, the default's first.

    Args:
        models: every model of the report.
        right: bool [N] by model name: which test images it has right.
        targets: accuracies whose labels are asked for; without any, some are chosen.
        price_per_label: what a label costs, for the words.
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
            seconds=tuple(model.train_seconds for model in group),
        )
        for group in groups
    )
    spread = seed_spread(points)
    if len(points) < MIN_FRACTIONS or not all(model.name in right for model in models):
        text = f"No curve is fitted: that takes {MIN_FRACTIONS} fractions, here are {len(points)}. "
        text += "`train` with --fraction 0.05, 0.2 and 0.3 beside the default ones is enough."
        if len(points) >= MIN_FRACTIONS:
            text = "No curve is fitted: the report keeps no answers by image."
        return Curve(
            variant=variant,
            points=points,
            floor=None,
            scale=None,
            exponent=None,
            seed_spread=spread,
            text=(text,),
        )
    sampled = _sample(groups, right, spread)
    law, best, misfit = fit(sampled.labels, sampled.errors, sampled.sigma, sampled.draws)
    most = points[-1].n_labels
    asked = targets or _levels(points)
    line = np.geomspace(points[0].n_labels, most * REACH, 60)
    curve = Curve(
        variant=variant,
        points=points,
        floor=_estimate(best.floor, law.floor),
        scale=_estimate(best.scale, law.scale),
        exponent=_estimate(best.exponent, law.exponent),
        line=tuple(_forecast(best, law, n) for n in line),
        next=tuple(_forecast(best, law, most * factor) for factor in (1.1, 2.0, 4.0)),
        targets=tuple(_target(accuracy, best, law, points) for accuracy in asked),
        check=_check(sampled, spread),
        seed_spread=spread,
        misfit=misfit,
    )
    return curve.model_copy(update={"text": _words(curve, price)})


def seed_spread(points: Sequence[CurvePoint]) -> float | None:
    """Relative standard deviation of the error between seeds, pooled over the fractions."""
    parts = []
    for point in points:
        errors = 1 - np.asarray(point.accuracies)
        if len(errors) > 1 and errors.mean() > 0:
            parts += [(float(errors.var(ddof=1) / errors.mean() ** 2), len(errors) - 1)]
    degrees = sum(d for _, d in parts)
    return float(np.sqrt(sum(v * d for v, d in parts) / degrees)) if degrees else None


def _sample(
    groups: Sequence[Sequence[Model]],
    right: Mapping[str, NDArray[np.bool_]],
    spread: float | None,
) -> _Sampled:
    random = np.random.default_rng(0)
    # [N, F]: the share of a fraction's seeds that have the image wrong.
    wrong = np.stack(
        [np.mean([~right[model.name] for model in group], axis=0) for group in groups], axis=1
    )
    n = len(wrong)
    errors = wrong.mean(axis=0)
    seeds = np.array([len(group) for group in groups])
    relative = (spread or 0.0) / np.sqrt(seeds)
    draws = np.empty((RESAMPLES, len(groups)))
    for index in range(RESAMPLES):
        counts = np.bincount(random.integers(0, n, n), minlength=n)
        draws[index] = counts @ wrong / n
    draws *= 1 + relative * random.standard_normal(draws.shape)
    images = errors * (1 - errors) / n
    sigma = np.sqrt(np.maximum(images, 0.25 / n**2) + (relative * errors) ** 2)
    labels = np.array([group[0].n_labels for group in groups], np.float64)
    return _Sampled(labels, errors, sigma, np.clip(draws, 0, 1))


def fit(
    labels: NDArray[np.float64],
    errors: NDArray[np.float64],
    sigma: NDArray[np.float64],
    draws: NDArray[np.float64],
) -> tuple[Law, Law, float | None]:
    """Fits the law to the errors and to every resampled row of them.

    Args:
        labels: [F] numbers of labels.
        errors: [F] measured errors.
        sigma: [F] their standard errors, the weights.
        draws: [R, F] resampled errors.

    Returns:
        The laws of the samples, the law of the errors themselves (arrays of one), and the misfit:
        the root of chi-squared over degrees of freedom, None without any. Above 1 it widens the
        samples (the Birge ratio).
    """
    # In units of the geometric mean, floor, scale and exponent depend less on each other.
    middle = float(np.exp(np.log(labels).mean()))
    best = _solve(labels / middle, errors[None], sigma)
    distance = (best[0, 0] + best[0, 1] * (labels / middle) ** -best[0, 2] - errors) / sigma
    degrees = len(labels) - best.shape[1]
    misfit = float(np.sqrt(np.sum(distance**2) / degrees)) if degrees > 0 else None
    widened = errors + (draws - errors) * max(1.0, misfit or 1.0)
    return _law(_solve(labels / middle, widened, sigma), middle), _law(best, middle), misfit


def _solve(
    units: NDArray[np.float64], rows: NDArray[np.float64], sigma: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Least squares for every row: for each exponent of a grid floor and scale are a line's, in
    closed form and not below zero, and the best exponent is taken (variable projection).

    Returns:
        float64 [R, 3]: floor, scale, exponent.
    """
    w = sigma**-2
    x = units ** -EXPONENTS[:, None]
    s0, s1, s2 = w.sum(), x @ w, x**2 @ w
    y0, y1 = (rows @ w)[:, None], (rows * w) @ x.T
    scale = (s0 * y1 - s1 * y0) / (s0 * s2 - s1**2)
    floor = (y0 - scale * s1) / s0
    scale = np.where(floor < 0, y1 / s2, scale)
    floor = np.where(scale < 0, y0 / s0, np.maximum(floor, 0))
    scale = np.maximum(scale, 0)
    cost = -2 * (floor * y0 + scale * y1)
    cost += floor**2 * s0 + 2 * floor * scale * s1 + scale**2 * s2
    picked = cost.argmin(axis=1)
    every = np.arange(len(rows))
    return np.stack([floor[every, picked], scale[every, picked], EXPONENTS[picked]], axis=1)


def _law(rows: NDArray[np.float64], middle: float) -> Law:
    return Law(rows[:, 0], rows[:, 1] * middle ** rows[:, 2], rows[:, 2])


def _estimate(value: NDArray[np.float64], samples: NDArray[np.float64]) -> Estimate:
    low, high = np.percentile(samples, LEVEL)
    return Estimate(value=float(value[0]), low=float(low), high=float(high))


def _forecast(best: Law, law: Law, n: float) -> Forecast:
    accuracy = _estimate(1 - best.error(n), 1 - law.error(n))
    return Forecast(n_labels=round(n), accuracy=accuracy)


def _check(sampled: _Sampled, spread: float | None) -> Check | None:
    """Foretells the largest fraction from the others; None when they are too few."""
    if len(sampled.labels) <= MIN_FRACTIONS:
        return None
    law, best, _ = fit(
        sampled.labels[:-1], sampled.errors[:-1], sampled.sigma[:-1], sampled.draws[:, :-1]
    )
    n, measured = float(sampled.labels[-1]), 1 - float(sampled.errors[-1])
    random = np.random.default_rng(1)
    errors = law.error(n) * (1 + (spread or 0.0) * random.standard_normal(len(law.floor)))
    predicted = _estimate(1 - best.error(n), 1 - errors)
    return Check(
        fitted_up_to=round(sampled.labels[-2]),
        n_fractions=len(sampled.labels) - 1,
        n_labels=round(n),
        predicted=predicted,
        measured=measured,
        error=predicted.value - measured,
        inside=predicted.low <= measured <= predicted.high,
    )


def _levels(points: Sequence[CurvePoint]) -> list[float]:
    """The two asked-for accuracies below the best measured one, and the two above."""
    best = max(float(np.mean(point.accuracies)) for point in points)
    least = float(np.mean(points[0].accuracies))
    below = [level for level in LEVELS if least < level <= best]
    return below[-2:] + [level for level in LEVELS if level > best][:2]


def _target(accuracy: float, best: Law, law: Law, points: Sequence[CurvePoint]) -> Target:
    most = points[-1].n_labels
    n = float(best.labels(1 - accuracy)[0])
    low, high = np.percentile(law.labels(1 - accuracy), LEVEL, method="nearest")
    share = percent(accuracy)
    reached = [p.n_labels for p in points if np.mean(p.accuracies) >= accuracy]
    if n > REACH * most:
        if isfinite(n):
            text = f"{share} lies beyond what this curve can tell: over {REACH:g} times the labels"
        else:
            level, low_level, high_level = (
                percent(1 - float(value), 1)
                for value in (best.floor[0], *np.percentile(law.floor, LEVEL[::-1]))
            )
            text = (
                f"{share} lies above where this curve levels off: {level} "
                f"({low_level} to {high_level})"
            )
        if low < REACH * most:
            text += f"; {count(low)} labels are the least that the data allow"
    else:
        text = f"{share} needs about {count(n)} labels"
        if high <= 10 * REACH * most:
            text += f", {count(low)} to {count(high)}"
        else:
            text += f", at least {count(low)}; no upper bound follows from these points"
            if reached:
                text += f", but {reached[0]:,} had it"
    if reached and n > reached[0]:
        text = f"{share} was measured with {reached[0]:,} labels already"
        if n <= REACH * most:
            text += f"; the curve through all points says about {count(n)}"
    return Target(
        accuracy=accuracy,
        n_labels=_finite(n),
        low=_finite(float(low)),
        high=_finite(float(high)),
        text=text,
    )


def _words(curve: Curve, price: float | None) -> tuple[str, ...]:
    assert curve.floor is not None
    assert curve.exponent is not None
    points = curve.points
    most, double = points[-1], curve.next[1]
    assert curve.scale is not None
    at = 1 - curve.floor.value - curve.scale.value * most.n_labels**-curve.exponent.value
    gain = (double.accuracy.value - at) * 100
    text = [target.text + "." for target in curve.targets]
    words = (
        f"Twice the labels ({count(double.n_labels)}) would give "
        f"{percent(double.accuracy.value, 1)} ({percent(double.accuracy.low, 1)} to "
        f"{percent(double.accuracy.high, 1)}), {gain:+.1f} points on the curve, which has "
        f"{percent(at, 1)} at {most.n_labels:,}: {most.n_labels:,} more labels"
    )
    if price is not None:
        cost = most.n_labels * price
        words += f", {money(cost)} at {price:g} a label"
    text.append(words + ".")
    if curve.check is None:
        text.append(
            f"Not checked: to foretell the largest fraction takes {MIN_FRACTIONS} smaller ones."
        )
    else:
        check = curve.check
        text.append(
            f"Checked: from {check.n_fractions} fractions up to {check.fitted_up_to:,} labels the "
            f"curve foretells {percent(check.predicted.value)} "
            f"({percent(check.predicted.low)} to {percent(check.predicted.high)}) at "
            f"{check.n_labels:,}; measured {percent(check.measured)}, an error of "
            f"{check.error * 100:+.2f} points, "
            f"{'inside' if check.inside else 'OUTSIDE'} the interval"
            + ("." if check.inside else ": do not trust this curve beyond its points.")
        )
    if curve.seed_spread is None:
        text.append(
            "Each fraction has one seed, so the intervals know nothing of the spread between runs "
            "beyond what the points' distance from the curve shows."
        )
    if curve.misfit is not None and curve.misfit > 1.5:
        text.append(
            f"The points lie {curve.misfit:.1f} times as far from the curve as their spread "
            "explains: the intervals are widened by that."
        )
    return tuple(text)


def percent(share: float, digits: int | None = None) -> str:
    """A share as `93.4 %`; without `digits` as many as it takes, two at most."""
    text = f"{share * 100:.{2 if digits is None else digits}f}"
    return f"{text.rstrip('0').rstrip('.') if digits is None else text} %"


def count(value: float) -> str:
    """A number of labels to two significant digits: what a curve can tell."""
    if not isfinite(value):
        return "any number of"
    if value <= 0:
        return "0"
    digits = max(0, int(log10(value)) - 1)
    return f"{round(value / 10**digits) * 10**digits:,}"


def money(value: float) -> str:
    """An amount: `1,400`, `0.60`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def _finite(value: float) -> float | None:
    return value if isfinite(value) and value < 1e12 else None
