"""One back-test: a forecast from some labels, and the accuracy with more, on all other images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from labelcurve.benchmarks.backtest import truth
from labelcurve.benchmarks.backtest.populations import Population
from labelcurve.benchmarks.record import Estimate, Record
from labelcurve.training.forecast import advice, head, measurement
from labelcurve.training.forecast.advice import DEVIATIONS

BAR = 2.0
"""Gain in percentage points above which more labels pay."""
HELD_OUT = 700
"""Images held out to measure the truth where the rest is unlabelled data; else all others are."""


class Draw(Record):
    """Forecast and measured values; accuracies as shares, gains in percentage points."""

    population: str
    n_labels: int
    more: int
    seed: int
    held_out: int
    """Number of images on which accuracy was measured."""
    answer: advice.Answer
    failed_check: bool
    now: Estimate
    then: Estimate
    gain: Estimate
    true_now: float
    """Accuracy of the model trained on the present labels."""
    true_then: float
    """Accuracy of the model trained on those and the further labels."""
    gain_deviation: float
    """Standard error of the true gain in points: the held-out images are a sample, too."""

    @property
    def true_gain(self) -> float:
        """True gain in points."""
        return (self.true_then - self.true_now) * 100

    @property
    def gain_inside(self) -> bool:
        """Whether the true gain is in its interval."""
        return self.gain.low <= self.true_gain <= self.gain.high

    @property
    def gain_compatible(self) -> bool:
        """Whether it is in an interval that allows for the standard error of the truth as well."""
        gain, error = self.gain, DEVIATIONS * self.gain_deviation
        low = gain.value - np.hypot(gain.value - gain.low, error)
        high = gain.value + np.hypot(gain.high - gain.value, error)
        return bool(low <= self.true_gain <= high)

    @property
    def right(self) -> bool | None:
        """Whether the answer "yes" or "no" was right; None for "cannot tell"."""
        if self.answer == "cannot tell":
            return None
        return (self.answer == "yes") == (self.true_gain > BAR)


def draw(population: Population, n_labels: int, more: int, seed: int) -> Draw:
    """Draw labels at random, forecast from the first `n_labels`, and train on all.

    The seed is that of the draw and of the measurement.
    """
    features, labels = population.features, population.labels
    order = np.random.default_rng([seed, n_labels]).permutation(len(labels))
    pooled = population.pool
    end = len(order) - HELD_OUT if pooled else n_labels + more
    test = order[end:]
    now = order[:n_labels]
    measured = measurement.cross_validate(
        head.standardise(features[now]), labels[now], int(labels.max()) + 1, seed=seed
    )
    advised = advice.advise(measured.points(), more, BAR)

    def right(n: int) -> truth.Flags:
        train, others = order[:n], order[n:end]
        if pooled:
            return truth.of_train(features, labels, train, others, test, seed)
        return truth.of_ridge(features, labels, train, test, measured.penalty)

    before, after = right(n_labels), right(n_labels + more)
    changed = after.astype(np.float64) - before
    return Draw(
        population=population.name,
        n_labels=n_labels,
        more=more,
        seed=seed,
        held_out=len(test),
        answer=advised.answer,
        failed_check=advised.failed_check is not None,
        now=_rounded(advised.accuracy_now),
        then=_rounded(advised.accuracy_then),
        gain=_rounded(advised.gain),
        true_now=float(before.mean()),
        true_then=float(after.mean()),
        gain_deviation=round(float(changed.std() / np.sqrt(len(test))) * 100, 5),
    )


def _rounded(found: advice.Estimate) -> Estimate:
    return Estimate(**{name: round(value, 5) for name, value in asdict(found).items()})


HEADER = (
    *("population", "labels", "draws", "truth inside", "median error", "mean error"),
    *("median width", "true gain", "its standard error", "gain inside", "or within its error"),
    "error of the gain",
    *("yes", "no", "cannot tell", "right", "failed check"),
)


def row(name: str, draws: Sequence[Draw]) -> list[str]:
    """Summarise some draws as a table row; errors and widths in percentage points."""
    errors = [abs(d.then.value - d.true_then) * 100 for d in draws]
    widths = [(d.then.high - d.then.low) * 100 for d in draws]
    gains = [abs(d.gain.value - d.true_gain) for d in draws]
    right = [d.right for d in draws if d.right is not None]
    kinds = {(d.n_labels, d.more) for d in draws}
    labels = ", ".join(f"{n:,} → {n + more:,}" for n, more in sorted(kinds))

    def share(flags: Sequence[bool]) -> str:
        return f"{np.mean(flags) * 100:.0f} %" if flags else "-"

    return [
        name,
        labels,
        str(len(draws)),
        share([d.then.low <= d.true_then <= d.then.high for d in draws]),
        f"{np.median(errors):.2f}",
        f"{np.mean(errors):.2f}" + (f" ± {np.std(errors, ddof=1):.2f}" if errors[1:] else ""),
        f"{np.median(widths):.1f}",
        f"{np.mean([d.true_gain for d in draws]):.1f}",
        f"{np.median([d.gain_deviation for d in draws]):.2f}",
        share([d.gain_inside for d in draws]),
        share([d.gain_compatible for d in draws]),
        f"{np.median(gains):.2f}",
        *(share([d.answer == a for d in draws]) for a in ("yes", "no", "cannot tell")),
        share(right),
        share([d.failed_check for d in draws]),
    ]
