"""Advice on more labels: yes, no, or cannot tell and what would settle it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite, log10
from typing import Literal

import numpy as np

from labelcurve.bundle.text import counted, one, percent, plain
from labelcurve.training.forecast.law import Floats, Points, forecast

Answer = Literal["yes", "no", "cannot tell"]

SURE = 0.85
"""Probability from which an answer is given."""
SURE_DEVIATIONS = 1.0364
"""Standard deviations between the median of a normal distribution and that probability."""
INTERVAL = (2.5, 50.0, 97.5)
DEVIATIONS = 1.96
"""Half of a 95 % interval in standard deviations."""
REACH = 8.0
"""Times the present labels: beyond it nothing is forecast, and no number named for a target."""
FEWEST_SIZES = 3
"""Different sizes that a forecast needs: with fewer the prior decides."""
A_CLASS = 5
"""Labels a class, on average, from which that many sizes are measured."""
LINE = 60
"""Points of the drawn curve."""


@dataclass(frozen=True)
class Estimate:
    """A median and the 95 % interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TargetLabels:
    """Labels that an accuracy takes; None means more than `REACH` times the present ones."""

    accuracy: float
    value: int | None
    low: int | None
    """0 where fewer labels than were measured may do."""
    high: int | None
    fewest: bool = False
    """Whether `value` and `high` are the fewest labels measured, which may be too many."""


@dataclass(frozen=True)
class Advice:
    """The answer, and its basis. Accuracies are shares, gains are percentage points.

    Medians do not add up: `then` is the accuracy to show, which differs from `accuracy_now` by
    the gain.
    """

    answer: Answer
    n_labels: int
    more: int
    accuracy_now: Estimate
    """The same whatever `more` is; measured where the curve is not fit for a forecast."""
    n_now: int
    """Labels that it is with: all, or the most that were measured."""
    accuracy_then: Estimate
    """As sampled; see `then`."""
    gain: Estimate
    least_gain: float
    """The gain from which more labels pay."""
    probability: float
    """Probability that the gain is larger than that."""
    would_tell: str | None
    """Labels that would decide, where the answer is "cannot tell"."""
    failed_check: str | None
    """Why there is no forecast, where there is none."""
    target: TargetLabels | None
    """None where none is asked for or the curve is not fit for a forecast."""
    line: tuple[tuple[float, Estimate], ...]
    """Labels and accuracy along the curve."""

    @property
    def then(self) -> Estimate:
        """The accuracy with the further labels: the present one plus the gain."""
        sampled = self.accuracy_then
        value = self.accuracy_now.value + self.gain.value / 100
        return replace(sampled, value=min(max(value, sampled.low), sampled.high))


def advise(
    points: Points, more: int, least_gain: float = 2.0, target: float | None = None
) -> Advice:
    """Forecasts, and decides.

    Args:
        more: labels that could be bought.
        least_gain: points of accuracy from which they pay.
        target: an accuracy whose labels are asked for.
    """
    n = points.n
    now, then = (1 - forecast(points, (n, n + more))).T
    gain = (then - now) * 100
    probability = float((gain > least_gain).mean())
    unfit, beyond = _unfit(points), _beyond(n, more)
    failed = unfit or beyond
    answer: Answer = "cannot tell"
    if failed is None and probability >= SURE:
        answer = "yes"
    elif failed is None and probability <= 1 - SURE:
        answer = "no"
    found = estimate(gain)
    return Advice(
        answer=answer,
        n_labels=n,
        more=more,
        accuracy_now=_measured(points) if unfit else _now(points),
        n_now=int(points.sizes[-1]) if unfit else n,
        accuracy_then=estimate(then),
        gain=found,
        least_gain=least_gain,
        probability=probability,
        would_tell=None if answer != "cannot tell" else _help(points, more, found, least_gain),
        failed_check=failed,
        target=None if target is None or unfit else labels_for(points, target),
        line=_line(points, n + more if failed is None else n),
    )


def rounded(labels: float) -> int:
    """A number of labels to two significant digits."""
    unit: int = 10 ** max(0, int(log10(max(labels, 1))) - 1)
    return round(labels / unit) * unit


def estimate(samples: Floats) -> Estimate:
    """The median and the 95 % interval of samples."""
    low, value, high = np.percentile(samples, INTERVAL)
    return Estimate(float(value), float(low), float(high))


def _now(points: Points) -> Estimate:
    """The accuracy with the labels there are."""
    # Sampled alone: samples joint with another number of labels vary with that number.
    return estimate(1 - forecast(points, (points.n,))[:, 0])


def _measured(points: Points) -> Estimate:
    """The accuracy at the largest size measured, where the curve is not fit for more."""
    value = 1 - float(points.errors[-1])
    half = DEVIATIONS * float(np.sqrt(points.covariance[-1, -1]))
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0))


def _line(points: Points, most: int) -> tuple[tuple[float, Estimate], ...]:
    if len(points.sizes) < FEWEST_SIZES:
        return ()
    labels = np.geomspace(points.sizes[0], most, LINE)
    accuracies = 1 - forecast(points, labels.tolist(), noise=False)
    return tuple(
        (float(n), estimate(column)) for n, column in zip(labels, accuracies.T, strict=True)
    )


def _unfit(points: Points) -> str | None:
    """Why nothing can be forecast from a curve."""
    n_sizes = len(points.sizes)
    if n_sizes < FEWEST_SIZES:
        return (
            f"accuracy could be measured at {counted(n_sizes, 'number')} of labels only "
            f"({_listed(points)}), and a curve needs {FEWEST_SIZES}: the smallest training set has "
            "two labels a class, and all labels are hardly more"
        )
    failed = _check(points)
    return None if failed is None else f"the curve fails its check: {failed}"


def _listed(points: Points) -> str:
    pairs = zip(points.sizes, 1 - points.errors, strict=True)
    return ", ".join(f"{percent(accuracy, 1)} with {size:,.0f}" for size, accuracy in pairs)


def _beyond(n: int, more: int) -> str | None:
    """Why nothing is forecast so far beyond the labels there are."""
    if n + more <= REACH * n:
        return None
    return f"{n + more:,} labels are more than {REACH:g} times the {n:,} that there are"


def _help(points: Points, more: int, gain: Estimate, least_gain: float) -> str:
    """What would settle the question, where these labels cannot."""
    n = points.n
    again = "chosen at random, and run `plan` again"
    if len(points.sizes) < FEWEST_SIZES:
        return f"{A_CLASS} labels and more a class on average; label them, {again}"
    if _check(points) is not None:
        few = rounded(n / 2)
        if few < more:
            return f"label about {few:,} more, {again}"
        return "no smaller sample that can be named, since the curve follows no law so far"
    if _beyond(n, more) is not None:
        return (
            f"ask for {int(REACH * n) - n:,} more labels or fewer (--more), and again once they "
            "are there"
        )
    return _would_tell(n, more, gain, least_gain)


def _check(points: Points) -> str | None:
    """Forecasts the largest size from those up to half of it; what failed, in words."""
    top = float(points.sizes[-1])
    before = points.upto(top / 2)
    if len(before.sizes) < 3:
        return None
    expected = estimate(1 - forecast(before, (top,))[:, 0])
    measured = 1 - float(points.errors[-1])
    slack = 0.5 / points.n  # half an image: of none wrong, no interval holds the accuracy 1
    if expected.low - slack <= measured <= expected.high + slack:
        return None
    return (
        f"from up to {before.sizes[-1]:,.0f} labels the curve forecasts {expected.low * 100:.1f} "
        f"to {expected.high * 100:.1f} % at {top:,.0f}, and {measured * 100:.1f} % were measured"
    )


def _would_tell(n: int, more: int, gain: Estimate, least_gain: float) -> str:
    """Assumes that intervals shrink with the square root of the number of labels."""
    deviation = (gain.high - gain.low) / (2 * DEVIATIONS)
    distance = abs(gain.value - least_gain)
    ratio = (SURE_DEVIATIONS * deviation / distance) ** 2 if distance > 0 else np.inf
    extra = n * (max(ratio, 1.0) - 1)
    if extra < more:
        few = max(rounded(extra), rounded(n / 10))
        if few < more:
            return f"label about {few:,} more, chosen at random, and run `plan` again"
        return (
            f"no smaller sample, since that takes about {few:,} more labels, and "
            f"{counted(more, 'label')} would be bought"
        )
    return (
        f"no smaller sample, since with fewer than {counted(more, 'label')} more the gain "
        f"({one(gain.low)} to {one(gain.high)} points) could still be above or below the "
        f"{plain(least_gain)} points from which it pays; decide by what the whole interval is "
        "worth, or set another bar with --least-gain, or with --price-per-label and "
        "--value-per-point"
    )


def labels_for(points: Points, accuracy: float) -> TargetLabels:
    """The labels that an accuracy takes, from the fewest measured to `REACH` times all."""
    grid = np.geomspace(points.sizes[0], REACH * points.n, 2 * LINE)
    samples = np.maximum.accumulate(1 - forecast(points, grid.tolist(), noise=False), axis=1)
    there = samples >= accuracy
    first = np.where(there.any(axis=1), grid[there.argmax(axis=1)], np.inf)
    low, value, high = np.percentile(first, INTERVAL, method="nearest")
    if low == grid[0]:
        low = 0.0
    fewest = bool(high == grid[0])
    return TargetLabels(accuracy, _named(value), _named(low), _named(high), fewest)


def _named(labels: float) -> int | None:
    return rounded(labels) if isfinite(labels) else None
