"""`python -m labelcurve.benchmarks.labelling.accepting`: are the accepted as accurate as wished?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from labelcurve.benchmarks.backtest.populations import Population, Sources, populations
from labelcurve.benchmarks.harness import provenance
from labelcurve.benchmarks.harness.statistics import spread
from labelcurve.bundle import acceptance, command
from labelcurve.bundle.manifest import HeldOut

WISHED = (0.9, 0.95, 0.98, 0.99)
SETS = (0.9, 0.95)
SIZES = {"cifar10": ((5_000, 1_000), (5_000, 4_000)), "digits": ((600, 400),)}
"""Labels to learn from, and calibration images."""
OTHERS = ((900, 500),)
PENALTY = 0.01
"""Penalty of the classifier, as in `training.models.linear_head`."""


@dataclass(frozen=True)
class Options(Sources):
    """Draws calibration images again and again and compares with all other images."""

    draws: int = 200
    """Draws of calibration images for each data set."""
    seed: int = 0
    """Seed of the labels to learn from and of the draws."""
    out: Path = Path("benchmarks/results/acceptance.json")
    """File to write."""


def main(arguments: Sequence[str]) -> None:
    """Runs the benchmark and writes its result."""
    options = provenance.parsed(Options, arguments)
    thresholds: list[dict[str, Any]] = []
    sets: list[dict[str, Any]] = []
    for population in populations(options):
        for n_train, n in SIZES.get(population.name, OTHERS):
            probabilities, labels = answers(population, n_train, options.seed)
            about = {
                "data": population.name,
                "n_train": n_train,
                "n": n,
                "n_others": len(labels),
                "accuracy": round(float((probabilities.argmax(1) == labels).mean()), 4),
            }
            draws = range(options.draws), n, options.seed
            for judge, levels, rows in ((accepting, WISHED, thresholds), (naming, SETS, sets)):
                for wished in levels:
                    drawn = resamples(probabilities, labels, *draws)
                    rows.append(about | judge(probabilities, labels, drawn, wished))
                    print(rows[-1], flush=True)
    document = {
        "provenance": provenance.here().model_dump(),
        "draws": options.draws,
        "thresholds": thresholds,
        "sets": sets,
    }
    provenance.save(options.out, document)


def answers(
    population: Population, n_train: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Probabilities and true classes of the images that the classifier did not learn from."""
    order = np.random.default_rng(seed).permutation(len(population.labels))
    train, others = order[:n_train], order[n_train:]
    classifier = LogisticRegression(C=1 / (PENALTY * n_train), max_iter=300, tol=1e-3)
    model = make_pipeline(StandardScaler(), classifier)
    model.fit(population.features[train], population.labels[train])
    found = model.predict_proba(population.features[others]).astype(np.float32)
    return found, population.labels[others].astype(np.int64)


def resamples(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], draws: range, n: int, seed: int
) -> Iterator[HeldOut]:
    """Calibration images, drawn with replacement: all images are then the truth, exactly."""
    for draw in draws:
        rows = np.random.default_rng([seed, draw]).integers(0, len(labels), n)
        yield acceptance.held_out(probabilities[rows], labels[rows])


def accepting(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    drawn: Iterator[HeldOut],
    wished: float,
) -> dict[str, Any]:
    """Measure how often the accepted miss the target accuracy, and the forecast's error."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    missed = refused = 0
    accuracies, forecast, coverage = [], [], []
    for held in drawn:
        try:
            found = acceptance.threshold(held, wished)
        except acceptance.NotEnough:
            refused += 1
            continue
        accepted = confidence >= np.float32(found.confidence)
        accuracies.append(float(right[accepted].mean()))
        missed += accuracies[-1] < wished
        forecast.append(found.coverage)
        coverage.append(float(accepted.mean()))
    error = np.subtract(forecast, coverage)
    best = np.cumsum(right[(-confidence).argsort()]) / np.arange(1, len(right) + 1) >= wished
    return {
        "wished": wished,
        "missed": missed,
        "refused": refused,
        **spread("accuracy_accepted", accuracies),
        **spread("coverage", coverage),
        "best_coverage": round(float(np.max(np.flatnonzero(best) + 1, initial=0)) / len(right), 4),
        **spread("forecast_bias", error),
        **spread("forecast_error", np.abs(error)),
    }


def naming(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    drawn: Iterator[HeldOut],
    wished: float,
) -> dict[str, Any]:
    """Measure how often the set contains the true class, and its size."""
    truth = probabilities[np.arange(len(labels)), labels]
    right = probabilities.argmax(1) == labels
    covered, sizes = [], []
    for held in drawn:
        least = np.float32(acceptance.set_threshold(held, wished))
        covered.append(float(((truth >= least) | right).mean()))
        sizes.append(float((probabilities >= least).sum(1).clip(min=1).mean()))
    return {
        "wished": wished,
        **spread("covered", covered),
        **spread("size", sizes),
    }


if __name__ == "__main__":
    command.enter(main, extra="train")
