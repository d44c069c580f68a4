"""What a learning curve says, in words."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, log10

import numpy as np

from benchmarks.record import Curve

MIN_FRACTIONS = 5
"""A law of three unknowns from fewer points says nothing of its own uncertainty."""
FAR = 3.0
"""Misfit above which the points follow another law, and nothing is foretold."""


def words(curve: Curve, taught: Sequence[int], price: float | None) -> tuple[str, ...]:
    """What a fitted curve says, and first what speaks against it.

    Args:
        curve: with its targets, forecasts and check.
        taught: by fraction, how many images taught without their labels.
        price: what a label costs.
    """
    text = [f"{target.text}." for target in curve.targets]
    if curve.next:
        text.append(_twice(curve, price))
    check = curve.check
    if check is None:
        text.append(
            f"Not checked: to foretell the largest fraction takes {MIN_FRACTIONS} smaller ones."
        )
    else:
        found = (
            f"from {check.n_fractions} fractions up to {check.fitted_up_to:,} labels the curve "
            f"foretells {percent(check.predicted.value)} ({percent(check.predicted.low)} to "
            f"{percent(check.predicted.high)}) at {check.n_labels:,}; measured "
            f"{percent(check.measured)}, an error of {check.error * 100:+.2f} points, "
        )
        if check.inside:
            text.append(f"Checked: {found}inside the interval.")
        else:  # before what rests on it
            text.insert(
                0,
                f"This curve failed its check, do not trust it beyond its points: {found}OUTSIDE "
                "the interval.",
            )
    if curve.misfit is not None and curve.misfit > FAR:
        text.insert(
            0,
            f"Nothing is foretold: the points lie {curve.misfit:.1f} times as far from the curve "
            "as their spread explains, so they do not follow a power law.",
        )
    elif curve.misfit is not None and curve.misfit > 1.5:
        text.append(
            f"The points lie {curve.misfit:.1f} times as far from the curve as their spread "
            "explains: the intervals are widened by that."
        )
    if any(taught):
        found = "These are labels for a given pool of images: where labels are few, the other "
        found += "training images taught, too, without theirs"
        if not taught[-1]:
            found += (
                f". With {curve.points[-1].n_labels:,} labels none were left, which is another "
                "recipe, so the last point may lie beside the curve of the others"
            )
        text.append(f"{found}.")
    if curve.seed_spread is None:
        text.append(
            "Each fraction has one seed, so the intervals know nothing of the spread between runs "
            "beyond what the points' distance from the curve shows: they are too narrow."
        )
    return tuple(text)


def _twice(curve: Curve, price: float | None) -> str:
    """What twice the labels would give, at which price, and whether that is less than is there."""
    assert curve.floor is not None
    assert curve.scale is not None
    assert curve.exponent is not None
    most, double = curve.points[-1], curve.next[1]
    at = 1 - curve.floor.value - curve.scale.value * most.n_labels**-curve.exponent.value
    gain = (double.accuracy.value - at) * 100
    words = (
        f"Twice the labels ({count(double.n_labels)}) would give "
        f"{percent(double.accuracy.value, 1)} ({percent(double.accuracy.low, 1)} to "
        f"{percent(double.accuracy.high, 1)}), {gain:+.1f} points on the curve, which has "
        f"{percent(at, 1)} at {most.n_labels:,}"
    )
    measured = float(np.mean(most.accuracies))
    if percent(measured, 1) != percent(at, 1):
        words += f" where {percent(measured, 1)} were measured"
    words += f": {most.n_labels:,} more labels"
    if price is not None:
        words += f", {money(most.n_labels * price)} at {price:g} a label"
    return f"{words}."


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
