"""The learning curve: a power law over labels, what it foretells, and a check of that.

error(n) = floor + scale * n ** -exponent, the form that test errors follow over a wide range of
data (Hestness et al. 2017; Rosenfeld et al. 2020). It is fitted by weighted least squares on the
mean error of each fraction. Intervals come from a bootstrap over test images (the same images for
every model) and over seeds (a normal deviate as wide as the pooled spread between seeds), widened
where the points lie further from the curve than that explains. A bootstrap has no width where the
best fit lies on the edge of what is allowed, a floor of 0 for one, so an interval reaches at least
as far as the profile likelihood does (Venzon and Moolgavkar 1988).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray

from benchmarks import curve_words, tables
from benchmarks.curve_words import MIN_FRACTIONS, count, percent
from benchmarks.record import Check, Curve, CurvePoint, Estimate, Forecast, Model, Target
from benchmarks.statistics import LEVEL

RESAMPLES = 1000
EXPONENTS = np.geomspace(0.02, 3, 800)
GRID = 200
"""Floors that the profile likelihood tries."""
PLAUSIBLE = 3.84
"""Chi-squared above the best fit's: 95 % of its distribution with one degree of freedom."""
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
class Laws:
    """What an interval spans."""

    samples: Law
    """Of the bootstrap."""
    edge: Law
    """Of the profile likelihood: the outermost that are plausible."""

    def span(self, of: Callable[[Law], NDArray[np.float64]]) -> tuple[float, float]:
        """The 95 % interval of what follows from a law."""
        # "nearest" where the values may be infinite, which nothing lies between.
        low, high = np.percentile(of(self.samples), LEVEL, method="nearest")
        edge = of(self.edge)
        return min(float(low), float(edge.min())), max(float(high), float(edge.max()))


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
            seconds=tuple(model.train_seconds for model in tables.timed(group)),
            shared=all(model.shared for model in group),
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
    laws, best, misfit = fit(sampled.labels, sampled.errors, sampled.sigma, sampled.draws)
    most = points[-1].n_labels
    lawful = misfit is None or misfit <= curve_words.FAR
    asked = targets or _levels(points)
    line = np.geomspace(points[0].n_labels, most * (REACH if lawful else 1), 60)
    curve = Curve(
        variant=variant,
        points=points,
        floor=_estimate(best, laws, lambda law: law.floor),
        scale=_estimate(best, laws, lambda law: law.scale),
        exponent=_estimate(best, laws, lambda law: law.exponent),
        line=tuple(_forecast(best, laws, n) for n in line),
        next=tuple(_forecast(best, laws, most * f) for f in (1.1, 2.0, 4.0) if lawful),
        targets=tuple(_target(accuracy, best, laws, points) for accuracy in asked if lawful),
        check=_check(sampled, spread),
        seed_spread=spread,
        misfit=misfit,
    )
    taught = [group[0].n_unlabelled for group in groups]
    return curve.model_copy(update={"text": curve_words.words(curve, taught, price)})


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
) -> tuple[Laws, Law, float | None]:
    """Fits the law to the errors and to every resampled row of them.

    Args:
        labels: [F] numbers of labels.
        errors: [F] measured errors.
        sigma: [F] their standard errors, the weights.
        draws: [R, F] resampled errors.

    Returns:
        The laws that the intervals span, the law of the errors themselves (arrays of one), and the
        misfit: the root of chi-squared over degrees of freedom, None without any. Above 1 it widens
        the intervals (the Birge ratio).
    """
    # In units of the geometric mean, floor, scale and exponent depend less on each other.
    middle = float(np.exp(np.log(labels).mean()))
    best = _solve(labels / middle, errors[None], sigma)
    distance = (best[0, 0] + best[0, 1] * (labels / middle) ** -best[0, 2] - errors) / sigma
    degrees = len(labels) - best.shape[1]
    misfit = float(np.sqrt(np.sum(distance**2) / degrees)) if degrees > 0 else None
    wider = max(1.0, misfit or 1.0)
    sampled = _solve(labels / middle, errors + (draws - errors) * wider, sigma)
    edge = _plausible(labels / middle, errors, sigma * wider)
    return Laws(_law(sampled, middle), _law(edge, middle)), _law(best, middle), misfit


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


def _plausible(
    units: NDArray[np.float64], errors: NDArray[np.float64], sigma: NDArray[np.float64]
) -> NDArray[np.float64]:
    """For each floor and exponent of a grid the two scales at which chi-squared is `PLAUSIBLE`
    above the least, where there are any.

    Returns:
        float64 [P, 3]: floor, scale, exponent.
    """
    w = sigma**-2
    x = units ** -EXPONENTS[:, None]
    floors = np.linspace(0, errors.min(), GRID)
    above = errors - floors[:, None]
    s2 = x**2 @ w
    scale = np.maximum((above * w) @ x.T / s2, 0)
    cost = (above**2 @ w)[:, None] - 2 * scale * ((above * w) @ x.T) + scale**2 * s2
    room = cost.min() + PLAUSIBLE - cost
    floor, exponent = np.nonzero(room >= 0)
    half = np.sqrt(room[floor, exponent] / s2[exponent])
    return np.concatenate(
        [
            np.stack(
                [
                    floors[floor],
                    np.maximum(scale[floor, exponent] + way * half, 0),
                    EXPONENTS[exponent],
                ],
                axis=1,
            )
            for way in (-1, 1)
        ]
    )


def _law(rows: NDArray[np.float64], middle: float) -> Law:
    return Law(rows[:, 0], rows[:, 1] * middle ** rows[:, 2], rows[:, 2])


def _estimate(best: Law, laws: Laws, of: Callable[[Law], NDArray[np.float64]]) -> Estimate:
    low, high = laws.span(of)
    return Estimate(value=float(of(best)[0]), low=low, high=high)


def _forecast(best: Law, laws: Laws, n: float) -> Forecast:
    accuracy = _estimate(best, laws, lambda law: 1 - law.error(n))
    return Forecast(n_labels=round(n), accuracy=accuracy)


def _check(sampled: _Sampled, spread: float | None) -> Check | None:
    """Foretells the largest fraction from the others; None when they are too few."""
    if len(sampled.labels) <= MIN_FRACTIONS:
        return None
    laws, best, _ = fit(
        sampled.labels[:-1], sampled.errors[:-1], sampled.sigma[:-1], sampled.draws[:, :-1]
    )
    n, measured = float(sampled.labels[-1]), 1 - float(sampled.errors[-1])
    expected = _forecast(best, laws, n).accuracy
    own = 1.96 * (spread or 0.0) * (1 - expected.value)  # between seeds, of the measured point
    predicted = Estimate(
        value=expected.value,
        low=max(0.0, expected.value - float(np.hypot(expected.value - expected.low, own))),
        high=min(1.0, expected.value + float(np.hypot(expected.high - expected.value, own))),
    )
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


def _target(accuracy: float, best: Law, laws: Laws, points: Sequence[CurvePoint]) -> Target:
    least, most = points[0].n_labels, points[-1].n_labels
    n = float(best.labels(1 - accuracy)[0])
    low, high = laws.span(lambda law: law.labels(1 - accuracy))
    share = percent(accuracy)
    reached = [p.n_labels for p in points if np.mean(p.accuracies) >= accuracy]
    if n > REACH * most:
        if isfinite(n):
            text = f"{share} lies beyond what this curve can tell: over {REACH:g} times the labels"
        else:
            level, *ends = (1 - float(best.floor[0]), *laws.span(lambda law: 1 - law.floor))
            text = (
                f"{share} lies above where this curve levels off: {percent(level, 1)} "
                f"({' to '.join(percent(end, 1) for end in ends)})"
            )
        if most < low < REACH * most:
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
    if n < least:
        text = f"{share} needs fewer labels than the least that were measured, {least:,}"
        n = low = high = inf
    return Target(
        accuracy=accuracy,
        n_labels=_finite(n),
        low=_finite(low),
        high=_finite(high),
        text=text,
    )


def _finite(value: float) -> float | None:
    return value if isfinite(value) and value < 1e12 else None
