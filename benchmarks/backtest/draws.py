"""One back-test: a forecast from some labels, and the accuracy with more, on all other images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from labelcurve.training.data.source import Index
from labelcurve.training.forecast import head, measurement
from labelcurve.training.forecast.advice import Answer, Estimate, advise
from labelcurve.training.forecast.head import Rows

BAR = 2.0
"""Gain in percentage points above which more labels pay."""


class Interval(BaseModel):
    """A median and its 95 % interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    low: float
    high: float

    def holds(self, truth: float) -> bool:
        """Whether the truth lies inside."""
        return self.low <= truth <= self.high


class Draw(BaseModel):
    """Forecast and measured values; accuracies as shares, gains in percentage points."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    population: str
    n_labels: int
    more: int
    seed: int
    held_out: int
    """Number of images on which accuracy was measured."""
    answer: Answer
    failed_check: bool
    now: Interval
    then: Interval
    gain: Interval
    true_now: float
    """Accuracy of the model trained on the present labels."""
    true_then: float
    """Accuracy of the model trained on those and the further labels."""

    @property
    def true_gain(self) -> float:
        """True gain in points."""
        return (self.true_then - self.true_now) * 100

    @property
    def right(self) -> bool | None:
        """Whether the answer "yes" or "no" was right; None for "cannot tell"."""
        if self.answer == "cannot tell":
            return None
        return (self.answer == "yes") == (self.true_gain > BAR)


def draw(name: str, features: Rows, labels: Index, n_labels: int, more: int, seed: int) -> Draw:
    """Draw labels at random, forecast from the first `n_labels`, and train on all.

    Args:
        name: of the population.
        features: [N, D], as they come from the network.
        labels: [N]
        n_labels: now.
        more: then.
        seed: of the draw and of the measurement.
    """
    order = np.random.default_rng([seed, n_labels]).permutation(len(labels))
    now, then, others = order[:n_labels], order[: n_labels + more], order[n_labels + more :]
    n_classes = int(labels.max()) + 1
    measured = measurement.cross_validate(
        head.standardise(features[now]), labels[now], n_classes, seed=seed
    )
    advice = advise(measured.points(), more, BAR)
    return Draw(
        population=name,
        n_labels=n_labels,
        more=more,
        seed=seed,
        held_out=len(others),
        answer=advice.answer,
        failed_check=advice.failed_check is not None,
        now=_interval(advice.accuracy_now),
        then=_interval(advice.accuracy_then),
        gain=_interval(advice.gain),
        true_now=_accuracy(features, labels, now, others),
        true_then=_accuracy(features, labels, then, others),
    )


def _accuracy(
    features: Rows, labels: Index, train: NDArray[np.int64], test: NDArray[np.int64]
) -> float:
    scaled = head.standardise(features, features[train])
    fitted = head.fit(scaled[train], labels[train], int(labels.max()) + 1)
    return float((fitted.scores(scaled[test]).argmax(axis=1) == labels[test]).mean())


def _interval(estimate: Estimate) -> Interval:
    return Interval(
        value=round(estimate.value, 5), low=round(estimate.low, 5), high=round(estimate.high, 5)
    )


HEADER = (
    "population",
    "labels",
    "draws",
    "truth inside",
    "median error",
    "mean error",
    "median width",
    "true gain",
    "gain inside",
    "error of the gain",
    "yes",
    "no",
    "cannot tell",
    "right",
    "failed check",
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
        share([d.then.holds(d.true_then) for d in draws]),
        f"{np.median(errors):.2f}",
        f"{np.mean(errors):.2f}" + (f" ± {np.std(errors, ddof=1):.2f}" if errors[1:] else ""),
        f"{np.median(widths):.1f}",
        f"{np.mean([d.true_gain for d in draws]):.1f}",
        share([d.gain.holds(d.true_gain) for d in draws]),
        f"{np.median(gains):.2f}",
        *(share([d.answer == a for d in draws]) for a in ("yes", "no", "cannot tell")),
        share(right),
        share([d.failed_check for d in draws]),
    ]
