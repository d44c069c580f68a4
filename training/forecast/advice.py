"""Advice on more labels: yes, no, or cannot tell and what would tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, log10
from typing import Literal

import numpy as np

from labelcurve.training.forecast.law import Floats, Points, forecast

Answer = Literal["yes", "no", "cannot tell"]

SURE = 0.85
"""Probability from which an answer is given."""
SURE_DEVIATIONS = 1.0364
"""Standard deviations of a normal deviate between its median and that probability."""
INTERVAL = (2.5, 50.0, 97.5)
DEVIATIONS = 1.96
"""Half of a 95 % interval in standard deviations."""
REACH = 8.0
"""Times the labels there are: beyond it no number of labels is named for a target."""
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
    """Labels that an accuracy takes; None is more than `REACH` times those there are."""

    accuracy: float
    value: int | None
    low: int | None
    high: int | None


@dataclass(frozen=True)
class Advice:
    """The answer, and what it rests on. Accuracies are shares, gains are points of 100."""

    answer: Answer
    n_labels: int
    more: int
    accuracy_now: Estimate
    accuracy_then: Estimate
    gain: Estimate
    least_gain: float
    """The gain from which more labels pay."""
    probability: float
    """Probability that the gain is larger than that."""
    would_tell: str | None
    """Labels that would decide, where the answer is "cannot tell"."""
    failed_check: str | None
    """Why there is no forecast, where the curve failed its check."""
    target: TargetLabels | None
    line: tuple[tuple[float, Estimate], ...]
    """Labels and accuracy along the curve."""


def advise(
    points: Points, more: int, least_gain: float = 2.0, target: float | None = None
) -> Advice:
    """Forecasts, and decides.

    Args:
        points: the measured curve.
        more: labels that could be bought.
        least_gain: points of accuracy from which they pay.
        target: an accuracy whose labels are asked for.
    """
    n = points.n
    now, then = (1 - forecast(points, (n, n + more))).T
    gain = (then - now) * 100
    probability = float((gain > least_gain).mean())
    failed = _check(points)
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
        accuracy_now=estimate(now),
        accuracy_then=estimate(then),
        gain=found,
        least_gain=least_gain,
        probability=probability,
        would_tell=None if answer != "cannot tell" else _would_tell(n, more, found, least_gain),
        failed_check=failed,
        target=None if target is None else labels_for(points, target),
        line=_line(points, n + more),
    )


def rounded(labels: float) -> int:
    """A number of labels to two significant digits."""
    unit: int = 10 ** max(0, int(log10(max(labels, 1))) - 1)
    return round(labels / unit) * unit


def estimate(samples: Floats) -> Estimate:
    """The median and the 95 % interval of samples."""
    low, value, high = np.percentile(samples, INTERVAL)
    return Estimate(float(value), float(low), float(high))


def _line(points: Points, most: int) -> tuple[tuple[float, Estimate], ...]:
    labels = np.geomspace(points.sizes[0], most, LINE)
    accuracies = 1 - forecast(points, labels.tolist(), luck=False)
    return tuple(
        (float(n), estimate(column)) for n, column in zip(labels, accuracies.T, strict=True)
    )


def _check(points: Points) -> str | None:
    """Forecasts the largest size from those up to half of it; what failed, in words."""
    top = float(points.sizes[-1])
    before = points.upto(top / 2)
    if len(before.sizes) < 3:
        return None
    expected = estimate(1 - forecast(before, (top,))[:, 0])
    measured = 1 - float(points.errors[-1])
    if expected.low <= measured <= expected.high:
        return None
    return (
        f"from up to {before.sizes[-1]:,.0f} labels the curve forecasts {expected.low * 100:.1f} "
        f"to {expected.high * 100:.1f} % at {top:,.0f}, and {measured * 100:.1f} % were measured"
    )


def _would_tell(n: int, more: int, gain: Estimate, least_gain: float) -> str:
    """Rests on intervals that shrink with the root of the number of labels."""
    deviation = (gain.high - gain.low) / (2 * DEVIATIONS)
    distance = abs(gain.value - least_gain)
    ratio = (SURE_DEVIATIONS * deviation / distance) ** 2 if distance > 0 else np.inf
    extra = n * (max(ratio, 1.0) - 1)
    if extra < more:
        few = max(rounded(extra), rounded(n / 10))
        return f"label about {min(few, more):,} more, chosen at random, and run `plan` again"
    return (
        f"no smaller sample, since the gain is too close to the {least_gain:g} points from which "
        "it pays; decide by what the whole interval is worth, or set another bar with "
        "--least-gain, or with --price-per-label and --value-per-point"
    )


def labels_for(points: Points, accuracy: float) -> TargetLabels:
    """The labels that an accuracy takes, from the fewest measured to `REACH` times all."""
    grid = np.geomspace(points.sizes[0], REACH * points.n, 2 * LINE)
    samples = np.maximum.accumulate(1 - forecast(points, grid.tolist(), luck=False), axis=1)
    there = samples >= accuracy
    first = np.where(there.any(axis=1), grid[there.argmax(axis=1)], np.inf)
    low, value, high = np.percentile(first, INTERVAL, method="nearest")
    return TargetLabels(accuracy, *map(_named, (value, low, high)))


def _named(labels: float) -> int | None:
    return rounded(labels) if isfinite(labels) else None


def sentences(advice: Advice, price_per_label: float | None) -> Sequence[str]:
    """Returns three sentences for the reader who pays."""
    now, then, gain = advice.accuracy_now, advice.accuracy_then, advice.gain
    total = advice.n_labels + advice.more
    head = {"yes": "Yes", "no": "No", "cannot tell": "These labels cannot tell"}[advice.answer]
    first = (
        f"{head}: {advice.more:,} more labels ({total:,} in all) would take accuracy from "
        f"{now.value * 100:.1f} % to about {then.value * 100:.1f} % "
        f"({then.low * 100:.1f} to {then.high * 100:.1f} %), a gain of {gain.value:.1f} points "
        f"({gain.low:.1f} to {gain.high:.1f})."
    )
    if advice.failed_check is not None:
        first = f"No forecast is given, since the curve fails its check: {advice.failed_check}."
    chance = f"{_share(advice.probability)} that the gain is above {advice.least_gain:.3g} points"
    second = f"The probability is {chance}, from which the labels pay."
    if price_per_label is not None:
        price = advice.more * price_per_label
        second = (
            f"They cost {price:,.2f} ({price_per_label:g} a label); the probability is {chance}, "
            "from which they pay."
        )
    if advice.failed_check is not None:
        second = "What was measured stands, and what lies beyond it is not known."
    third = (
        "This holds for a linear classifier on frozen features, and for images like these: a "
        "fine-tuned model starts higher, and its gain may differ."
    )
    if advice.would_tell is not None:
        third = f"What would tell: {advice.would_tell}."
    return first, second, third


def _share(probability: float) -> str:
    if probability > 0.99:
        return "over 99 %"
    return "under 1 %" if probability < 0.01 else f"{probability * 100:.0f} %"
