"""`python -m labelcurve.benchmarks.backtest.lcdb`: the law of `plan` on public learning curves.

LCDB (Mohr et al. 2022; `lcdb` on PyPI, MIT) holds error rates of scikit-learn's classifiers on 246
tabular data sets, by splits of each. The largest size of a curve is forecast from those up to two
sevenths of it, as `plan` does with 800 labels for 2,800.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labelcurve.benchmarks.harness import provenance
from labelcurve.bundle import command
from labelcurve.training.forecast.law import DEPARTURES, SHIFTS, Floats, Points, forecast

RATIO = 3.5
"""Labels then over labels now."""
SPAN = 33.0
"""The most labels over the fewest that are measured."""
LEAST_SIZES, LEAST_SPLITS = 5, 10
SHARED = 2.5
"""Variance of a mean over splits, whose test images overlap, over that of as many independent."""
LINEAR = ("SVC_linear", "LogisticRegression", "RidgeClassifier", "LinearDiscriminantAnalysis")
WIDE = {0.02: 1.0, 0.05: 1.0, 0.1: 1.0, 0.2: 1.0}
PRIORS: Mapping[str, tuple[Mapping[float, float], Sequence[float]]] = {
    "power law alone": ({1e-6: 1}, (0,)),
    "shifted power law alone": ({1e-6: 1}, SHIFTS),
    "power law, departures of `plan`": (DEPARTURES, (0,)),
    "of `plan`": (DEPARTURES, SHIFTS),
    "power law, departures of 2 to 20 % equally likely": (WIDE, (0,)),
    "shifted power law, departures of 2 to 20 % equally likely": (WIDE, SHIFTS),
}
"""Priors of the departure from the law, as shares of the error, and of its shift."""

Errors = Mapping[int, Mapping[str, float]]
"""Error rates by size and split."""


@dataclass(frozen=True)
class Task:
    """A curve whose future is known."""

    linear: bool
    points: Points
    labels: float
    truth: float
    deviation: float
    """Standard deviation of the truth."""


@dataclass(frozen=True)
class Options:
    """Forecasts public learning curves under several priors of the law."""

    accuracies: Path
    """database-accuracy.csv of the package lcdb."""
    out: Path = Path("benchmarks/results/lcdb.json")
    """File to write."""
    every: int = 1
    """Take one curve of so many."""


def main(arguments: Sequence[str]) -> None:
    """Runs the comparison."""
    options = provenance.parsed(Options, arguments)
    found = list(tasks(read(options.accuracies)))[:: options.every]
    rows: list[dict[str, Any]] = []
    for name, some in (("all", found), ("linear", [task for task in found if task.linear])):
        for prior, (departures, shifts) in PRIORS.items():
            rows.append({"learners": name, "prior": prior, **judge(some, departures, shifts)})
            print(rows[-1], flush=True)
    about = {"lcdb": "0.1.0", "ratio": RATIO, "rows": rows}
    provenance.write(options.out, provenance.conditions("labelcurve", "numpy") | about)


def judge(
    some: Sequence[Task], departures: Mapping[float, float], shifts: Sequence[float]
) -> dict[str, float]:
    """Coverage, errors and width of the 95 % intervals under a prior, in percentage points."""
    found = []
    for task in some:
        samples = forecast(
            task.points, (task.labels,), noise=False, departures=departures, shifts=shifts
        )[:, 0]
        random = np.random.default_rng(0)
        samples = samples + random.normal(0, task.deviation, len(samples))
        low, value, high = np.percentile(samples, (2.5, 50, 97.5))
        found.append((low <= task.truth <= high, abs(value - task.truth), high - low))
    inside, errors, widths = np.array(found, np.float64).T
    return {
        "curves": len(some),
        "inside": round(float(inside.mean()), 4),
        "median_error": round(float(np.median(errors)) * 100, 3),
        "mean_error": round(float(errors.mean()) * 100, 3),
        "error_deviation": round(float(errors.std(ddof=1)) * 100, 3),
        "median_width": round(float(np.median(widths)) * 100, 3),
    }


def read(path: Path) -> Mapping[tuple[int, str], Errors]:
    """Error rates by data set and learner."""
    found: dict[tuple[int, str], dict[int, dict[str, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            curve = found[int(row["openmlid"]), row["learner"].rpartition(".")[2]]
            split = f"{row['outer_seed']} {row['inner_seed']}"
            curve[int(row["size_train"])][split] = 1 - float(row["score_test"])
    return found


def tasks(curves: Mapping[tuple[int, str], Errors]) -> Iterator[Task]:
    """The curves that reach far enough, in the order of their data set and learner."""
    for (_, learner), errors in sorted(curves.items()):
        task = _task(errors, linear=learner in LINEAR)
        if task is not None:
            yield task


def _task(errors: Errors, *, linear: bool) -> Task | None:
    """None where the curve has too few sizes or splits."""
    most = max(len(splits) for splits in errors.values())
    sizes = sorted(size for size, splits in errors.items() if len(splits) >= 0.9 * most)
    splits = set.intersection(*(set(errors[size]) for size in sizes))
    top = min(sizes, key=lambda size: abs(np.log(sizes[-1] / size / RATIO)))
    seen = [size for size in sizes if top / SPAN <= size <= top]
    if len(splits) < LEAST_SPLITS or len(seen) < LEAST_SIZES:
        return None
    if abs(np.log(sizes[-1] / top / RATIO)) > 0.3:  # no size near that ratio
        return None
    rates: Floats = np.array(
        [[errors[size][split] for size in (*seen, sizes[-1])] for split in sorted(splits)]
    )
    covariance = np.cov(rates, rowvar=False) * SHARED / len(splits) + 1e-8 * np.eye(len(seen) + 1)
    means = rates.mean(axis=0)
    points = Points(np.array(seen, np.float64), means[:-1], covariance[:-1, :-1], top)
    return Task(linear, points, sizes[-1], float(means[-1]), float(covariance[-1, -1] ** 0.5))


if __name__ == "__main__":
    command.enter(main, extra="bench")
