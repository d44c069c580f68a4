"""Confidence intervals and tests over test images.

They account for the sampling of test images only; variance between seeds takes several runs.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from labelcurve.benchmarks.record import Comparison, Estimate, Model

RESAMPLES = 1000
LEVEL = (2.5, 97.5)
"""Percentiles of a 95 % interval."""
Z = 1.959964
"""Half-width of a 95 % interval in standard errors."""


def estimate(value: float, samples: NDArray[np.float64]) -> Estimate:
    """Attach the 2.5 and 97.5 percentiles of bootstrap samples to a figure."""
    low, high = np.percentile(samples, LEVEL)
    return Estimate(value=float(value), low=float(low), high=float(high))


def spread(name: str, values: Sequence[float] | NDArray[np.float64]) -> dict[str, float | None]:
    """Mean and standard deviation (n - 1) of a figure, to four digits; None of too few values."""
    n = len(values)
    return {
        name: round(float(np.mean(values)), 4) if n else None,
        f"{name}_std": round(float(np.std(values, ddof=1)), 4) if n > 1 else None,
    }


def weighted_f1(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """F1 weighted by class frequency, float64 [...], of int64 [..., K, K], true classes by row."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, answers = confusion.sum(axis=-1), confusion.sum(axis=-2)
    f1 = 2 * right / np.maximum(support + answers, 1)
    result: NDArray[np.float64] = (f1 * support).sum(axis=-1) / support.sum(axis=-1)
    return result


def bootstrap_f1(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bootstrap the weighted F1, float64 [RESAMPLES], of a confusion matrix int64 [K, K].

    Drawing images is drawing cells of the matrix.
    """
    random = np.random.default_rng(0)
    cells = np.nonzero(confusion)
    counts = confusion[cells]
    total = int(counts.sum())
    found = np.empty(RESAMPLES)
    drawn = np.zeros_like(confusion)
    for index in range(RESAMPLES):
        drawn[cells] = random.multinomial(total, counts / total)
        found[index] = weighted_f1(drawn)
    return found


def compare(a: str, b: str, right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> Comparison:
    """McNemar's exact test of two models on the same images.

    Under the null hypothesis each discordant pair is a fair coin flip. The interval of the
    difference is normal, for paired samples. The models are given by name and by the images that
    they classify correctly, bool [N].
    """
    n = len(right_a)
    only_a = int(np.sum(right_a & ~right_b))
    only_b = int(np.sum(right_b & ~right_a))
    difference = (only_b - only_a) / n
    # Of a mean of n paired differences that are -1, 0 or 1.
    error = float(np.sqrt(max(0.0, (only_a + only_b) / n - difference**2) / n))
    apart = only_a + only_b
    return Comparison(
        a=a,
        b=b,
        n=n,
        only_a=only_a,
        only_b=only_b,
        difference=Estimate(
            value=difference, low=difference - Z * error, high=difference + Z * error
        ),
        p_value=float(binomtest(only_b, apart, 0.5).pvalue) if apart else 1.0,
    )


def comparisons(
    models: Sequence[Model], right: Mapping[str, NDArray[np.bool_]]
) -> tuple[Comparison, ...]:
    """Compare each number of labels with the next, and each variant with the default.

    The lowest seed represents its fraction; `right` is bool [N] by model name.
    """
    first: dict[tuple[str, int], str] = {}
    for model in sorted(models, key=lambda m: m.seed):
        first.setdefault((model.variant, model.n_labels), model.name)
    pairs: list[tuple[str, str]] = []
    variants = sorted({variant for variant, _ in first}, key=lambda v: (v != "default", v))
    for variant in variants:
        labels = sorted(n for v, n in first if v == variant)
        names = [first[variant, n] for n in labels]
        pairs += pairwise(names)
        if len(names) > 2:
            pairs.append((names[0], names[-1]))
        if variant != variants[0]:
            others = (first.get((variants[0], n)) for n in labels)
            pairs += [(a, b) for a, b in zip(names, others, strict=True) if b is not None]
    return tuple(compare(a, b, right[a], right[b]) for a, b in pairs)


def pack(right: NDArray[np.bool_]) -> str:
    """Pack bits as base64, see `record.Accuracy.right`."""
    return b64encode(np.packbits(right).tobytes()).decode()


def unpack(text: str, n: int) -> NDArray[np.bool_]:
    """Unpack bool [n]: the inverse of `pack`."""
    raw = np.frombuffer(b64decode(text), np.uint8)
    return np.unpackbits(raw, count=n).astype(np.bool_)
