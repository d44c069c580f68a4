"""The posterior of a learning curve: a power law, a smooth departure from it, and noise.

error(n) = floor + scale * (n + shift) ** -exponent. Without the shift it is the form that test
errors follow over a wide range of data (Hestness et al. 2017; Rosenfeld et al. 2020); the shift
(POW4 in Mohr et al. 2022) bends it where labels are few, and errors still fall slowly. Real curves
depart from it, smoothly and in proportion to the error; a Gaussian process over log2(n) stands for
that (Kennedy and O'Hagan 2001), and its size is inferred from the points, too: points that follow
the law give a narrow interval, others a wide one. Floor, shift, exponent and departure lie on a
grid, the scale is integrated in closed form, so that the posterior is exact up to the grid and
needs no starting values.

The priors were chosen by back-tests (docs/log.md); `python -m labelcurve.benchmarks.backtest` makes
such a test with other draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DRAWS = 4000
EXPONENTS = np.geomspace(0.03, 3, 40)
TYPICAL_EXPONENT = 0.5
EXPONENT_SPREAD = 0.35
"""Standard deviation of the exponent's logarithm, a priori."""
SHIFTS = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Shifts, as multiples of the fewest labels measured, equally likely a priori."""
FLOORS = 1.2 * (np.arange(40) + 0.5) / 40
"""Floors, as shares of the least measured error, equally likely a priori. Some exceed 1, since the
least of several measured errors is lower than the true one."""
DEPARTURES: Mapping[float, float] = {0.01: 8, 0.02: 4, 0.05: 2, 0.1: 1, 0.2: 0.5}
"""Standard deviations of the departure from the law, as shares of the error, and their odds."""
DOUBLINGS = 3.0
"""Doublings of the labels over which a departure is correlated."""
NOISE = 0.14
"""Variance of the accuracy between training sets of n labels, in units of error * (1 - error) / n:
0 to 0.23 on eight label sets at 200 labels, 0 to 0.12 at 800 (docs/log.md)."""
SHARED = 4.0
"""Power of the share of labels that two training sets have in common: with 180 labels of TrashNet
and 10 or 50 more the interval of the gain is a half and four fifths as wide as with independent
noise, and contains the truth; at 3.5 times the labels, as in the back-test, it is 0.3 %
narrower."""


@dataclass(frozen=True)
class Points:
    """A measured learning curve, sizes in rising order."""

    sizes: Floats
    """[F] labels to train on."""
    errors: Floats
    """[F]"""
    covariance: Floats
    """[F, F] of the errors: test images, training labels and subsets."""
    n: int

    def upto(self, size: float) -> Points:
        """The points of at most `size` labels."""
        kept = self.sizes <= size
        return Points(
            self.sizes[kept], self.errors[kept], self.covariance[np.ix_(kept, kept)], self.n
        )


@dataclass(frozen=True)
class _Posterior:
    """Given a departure: the scale's mean [K, L] and precision [K], for curves and floors.

    The K curves are all pairs of a shift and an exponent.
    """

    scale: Floats
    precision: Floats
    log_weight: Floats
    """[K, L]"""
    gain: Floats
    """[F, T]: what a residual at the points says of the departure at the targets."""
    root: Floats
    """[T, T]: a square root of the covariance that is left there."""


def forecast(
    points: Points,
    labels: Sequence[float],
    *,
    noise: bool = True,
    departures: Mapping[float, float] = DEPARTURES,
    shifts: Sequence[float] = SHIFTS,
    seed: int = 0,
) -> Floats:
    """Samples of the error at numbers of labels, jointly.

    Args:
        points: three and more; with fewer the prior decides (`advice` gives no forecast then).
        labels: [T] numbers of labels.
        noise: that of a single model trained on so many labels; else the expectation over models.
        departures: prior of the departure from the law.
        shifts: as multiples of the fewest labels measured, equally likely a priori.
        seed: of the samples.

    Returns:
        float64 [DRAWS, T], each between 0 and 1.
    """
    targets = np.asarray(labels, np.float64)
    floors = FLOORS * min(float(points.errors.min()), 1.0)
    at = _decay(points, points.sizes, shifts)
    later = _decay(points, targets, shifts)
    parts = [_given(share, points, targets, floors, at, noise=noise) for share in departures]
    odds = departures.values()
    log_weight = np.stack([p.log_weight + np.log(w) for p, w in zip(parts, odds, strict=True)])
    weight = np.exp(log_weight - log_weight.max())
    random = np.random.default_rng(seed)
    picked = random.choice(weight.size, DRAWS, p=(weight / weight.sum()).ravel())
    which, curve, floor = np.unravel_index(picked, weight.shape)
    samples = np.empty((DRAWS, len(targets)))
    for index, part in enumerate(parts):
        rows = which == index
        k, f = curve[rows], floor[rows]
        spread = random.standard_normal(len(k)) / np.sqrt(part.precision[k])
        scale = np.abs(part.scale[k, f] + spread)[:, None]
        level = floors[f][:, None]
        law = level + scale * later[k]
        residual = points.errors - level - scale * at[k]
        departure = random.standard_normal((len(k), len(targets))) @ part.root.T
        samples[rows] = law + residual @ part.gain + departure
    return np.clip(samples, 0, 1)


def _decay(points: Points, labels: Floats, shifts: Sequence[float]) -> Floats:
    """[K, T] of labels [T]: the falling part of the law, which is 1 at the most labels measured."""
    shift = np.multiply(shifts, points.sizes[0])[:, None, None]
    decay: Floats = ((labels + shift) / (points.sizes[-1] + shift)) ** -EXPONENTS[:, None]
    return decay.reshape(-1, len(labels))


def _given(
    share: float, points: Points, targets: Floats, floors: Floats, at: Floats, *, noise: bool
) -> _Posterior:
    f = len(points.sizes)
    # The errors at the targets are not known yet; a little below the last one will do.
    errors = np.concatenate([points.errors, np.full(len(targets), 0.9 * points.errors[-1])])
    errors = np.maximum(errors, 1e-4)
    place = np.log2(np.concatenate([points.sizes, targets])) / DOUBLINGS
    departure = share**2 * np.exp(-0.5 * (place[:, None] - place) ** 2)
    departure *= errors[:, None] * errors
    covariance = points.covariance + departure[:f, :f] + 1e-9 * np.eye(f)
    root = np.linalg.cholesky(covariance)
    x = np.linalg.solve(root, at.T)
    y = np.linalg.solve(root, points.errors[:, None] - floors)
    precision, xy = (x**2).sum(axis=0), x.T @ y
    scale = np.maximum(xy / precision[:, None], 0)
    misfit = (y**2).sum(axis=0) - 2 * scale * xy + scale**2 * precision[:, None]
    prior = -0.5 * (np.log(EXPONENTS / TYPICAL_EXPONENT) / EXPONENT_SPREAD) ** 2
    log_weight = np.resize(prior, len(at))[:, None] - 0.5 * (misfit + np.log(precision)[:, None])
    log_weight -= np.log(np.diag(root)).sum()
    gain = np.linalg.solve(covariance, departure[:f, f:])
    left = departure[f:, f:] - departure[f:, :f] @ gain
    if noise:
        left = left + _noise(points, targets)
    values, vectors = np.linalg.eigh((left + left.T) / 2)
    return _Posterior(scale, precision, log_weight, gain, vectors * np.sqrt(np.maximum(values, 0)))


def _noise(points: Points, targets: Floats) -> Floats:
    """Covariance of the models at the targets. Half of that of the present labels is measured.

    Beyond them a model shares the noise of these labels, the less the smaller their share in all
    labels: all of it where hardly any are added, almost none at several times as many.
    """
    error = float(points.errors[-1])
    variance = NOISE * error * (1 - error) / targets
    beyond = targets > points.n
    shared = np.where(beyond, (points.n / targets) ** SHARED, np.where(targets == points.n, 1, 0))
    now = 0.5 * NOISE * error * (1 - error) / points.n
    own = variance * np.where(beyond, 1 - shared**2, 0.5 * (1 - shared))
    found: Floats = now * shared[:, None] * shared + np.diag(own)
    return found
