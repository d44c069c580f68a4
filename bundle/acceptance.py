"""Thresholds: answers to accept for a target accuracy, sets of classes for a target coverage.

Both are based on the validation images of a model, whose answers are in its manifest (`HeldOut`).

**Accepting.** An answer is accepted where its confidence is at least a threshold, one of the
held-out confidences. With probability `CERTAINTY`, over draws of the held-out images, the accepted
answers are right as often as wished. This is Learn then Test (Angelopoulos et al., 2021) over the
ranks of the held-out confidences, with the error of testing many ranks computed instead of
bounded: beyond the last rank that is good enough, the k most confident images have at least as many
wrong answers as k Bernoulli trials at the allowed error rate, and the probability that such trials
anywhere stay within the number that the rule allows is a sum of binomial terms. It assumes that
images come from the same distribution as the held-out ones, and that more confident answers are
not wrong more often.

**Sets.** Split conformal prediction (Sadinle et al., 2019): the classes whose probability is at
least that which the true class has in the wished share of the held-out images, and the most
probable class.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log

import numpy as np
from numpy.typing import NDArray

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.manifest import HeldOut
from labelcurve.bundle.text import percent

CERTAINTY = 0.95
"""Probability, over draws of the held-out images, that the accepted are as accurate as wished."""
LEAST_WISHED, MOST_WISHED = 0.5, 0.9999
"""Limits of accuracies and shares that may be requested."""
MOST_RANKS = 500
"""Maximum number of ranks that a manifest keeps."""
STEP = 1.2
"""Ratio of the numbers of wrong answers that are allowed, where they are large."""


class NotEnough(LabelcurveError):
    """The held-out images cannot show what was asked for."""


@dataclass(frozen=True)
class Threshold:
    """Confidence threshold from which answers are accepted."""

    confidence: float
    """At least this, as a float32."""
    coverage: float
    """Share of the held-out images that are accepted: the estimate for others."""
    n: int
    """Held-out images that it is based on."""


def held_out(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> HeldOut:
    """Summarizes the answers to held-out images for the manifest.

    Args:
        probabilities: [N, K], taken as float32.
        labels: [N], true classes from 0 to K - 1.
    """
    found = probabilities.astype(np.float32)
    n = len(labels)
    wrong = found.argmax(1) != labels
    confidence = found.max(1)
    order = (-confidence).argsort(kind="stable")
    confidence, wrong = confidence[order], np.cumsum(wrong[order])
    truth = np.sort(found[np.arange(n), labels])[::-1]
    at = np.unique(np.linspace(1, n, min(n, MOST_RANKS)).round().astype(int)) - 1
    # Equal confidences are accepted together: a rank is the last one of its confidence.
    last = np.searchsorted(-confidence, -confidence[at], side="right") - 1
    last = np.unique(last)
    return HeldOut(
        n=n,
        ranks=tuple((last + 1).tolist()),
        confidence=_shortest(confidence[last]),
        wrong=tuple(wrong[last].tolist()),
        truth_ranks=tuple((at + 1).tolist()),
        truth=_shortest(truth[at]),
    )


def threshold(held: HeldOut | None, wished: float) -> Threshold:
    """The lowest confidence from which answers are right as often as wished.

    Args:
        held: of the manifest; None in bundles of releases that did not keep it.
        wished: accuracy among the accepted, from `LEAST_WISHED` to `MOST_WISHED`.

    Raises:
        NotEnough: the held-out images are too few, or too often wrong, to show it anywhere.
        LabelcurveError: no such accuracy.
    """
    _check(wished, "accepting")
    held = _kept(held)
    least = fewest(wished)
    if held.n < least:
        raise NotEnough(
            f"accepting with {_share(wished)} accuracy needs at least {least:,} held-out images, "
            f"and the model has {held.n:,} that validated it: label more images, or ask for less"
        )
    ranks = np.asarray(held.ranks)
    limits = np.asarray(_allowed(held.n, wished))
    passed = np.flatnonzero(np.asarray(held.wrong) <= limits[ranks])
    if not len(passed):
        raise NotEnough(
            f"none of the model's answers can be accepted with {_share(wished)} accuracy: its "
            f"{held.n:,} held-out images show it for no confidence. Ask for less, or label more "
            "images"
        )
    last = passed[-1]
    return Threshold(held.confidence[last], held.ranks[last] / held.n, held.n)


def set_threshold(held: HeldOut | None, wished: float) -> float:
    """The lowest probability of a class in a set that contains the true class as often as wished.

    Args:
        wished: share of the images whose set contains the true class, in the same limits.

    Raises:
        NotEnough: the held-out images are too few.
        LabelcurveError: no such share.
    """
    _check(wished, "sets")
    held = _kept(held)
    rank = ceil((held.n + 1) * wished)
    if rank > held.n:
        least = ceil(round(wished / (1 - wished), 6))  # 0.9 / (1 - 0.9) is a little more than 9
        raise NotEnough(
            f"sets that hold the true class in {_share(wished)} need at least {least:,} held-out "
            f"images, and the model has {held.n:,}: label more images, or ask for less"
        )
    # The next rank that was kept: never less than wished.
    return held.truth[int(np.searchsorted(held.truth_ranks, rank))]


def members(probabilities: NDArray[np.float32], least: float) -> list[int]:
    """The classes of a set, most probable first; the most probable one is always in it.

    Args:
        probabilities: float32 [K].
        least: of `set_threshold`.
    """
    order = (-probabilities).argsort(kind="stable")
    n = max(1, int((probabilities >= np.float32(least)).sum()))
    return [int(i) for i in order[:n]]


def fewest(wished: float) -> int:
    """Held-out images without which no answer can be accepted: all of them right, 0.95 certain."""
    return ceil(log(1 - CERTAINTY) / log(wished))


def _kept(held: HeldOut | None) -> HeldOut:
    if held is None:
        raise NotEnough(
            "the model was published by a release that kept no answers to held-out images: train "
            "it again"
        )
    return held


def _check(wished: float, what: str) -> None:
    if not LEAST_WISHED <= wished <= MOST_WISHED:
        raise LabelcurveError(
            f"{what}: {wished:g} is not a share from {LEAST_WISHED} to {MOST_WISHED}, such as 0.95"
        )


def _share(wished: float) -> str:
    return percent(wished, 4).replace(" %", "").rstrip("0").rstrip(".") + " %"


def _shortest(values: NDArray[np.float32]) -> tuple[float, ...]:
    """The shortest decimals that are read as the same float32."""
    return tuple(float(str(value)) for value in values)


@lru_cache(maxsize=64)
def _allowed(n: int, wished: float) -> tuple[int, ...]:
    """Wrong answers allowed among the k most confident of n, for k from 0 to n; -1 is none.

    The same pointwise level at each rank where one more is allowed, the largest level for which the
    chance of an error at any of them is at most 1 - `CERTAINTY`.
    """
    error = 1 - CERTAINTY
    limits = _limits(n, 1 - wished)
    low, high = error / len(limits), error
    if _crossing(_ranks(limits, n, wished, high), limits, wished) <= error:
        low = high  # a single rank
    for _ in range(12):
        middle = (low * high) ** 0.5
        if _crossing(_ranks(limits, n, wished, middle), limits, wished) > error:
            high = middle
        else:
            low = middle
    allowed = np.full(n + 1, -1)
    for rank, limit in zip(_ranks(limits, n, wished, low), limits, strict=False):
        allowed[rank:] = limit
    return tuple(allowed.tolist())


def _limits(n: int, p: float) -> list[int]:
    """0, 1, 2 and so on, thinned out, up to as many wrong answers as n ranks may have."""
    found = [0]
    while (more := max(found[-1] + 1, int(found[-1] * STEP))) < n * p:
        found.append(more)
    return found


def _ranks(limits: list[int], n: int, wished: float, level: float) -> list[int]:
    """Finds for each limit the least k <= n where so few errors are at most `level` probable."""
    found: list[int] = []
    for limit in limits:
        low, high = limit, n + 1  # too few, enough
        while high - low > 1:
            middle = (low + high) // 2
            if _binomial(middle, 1 - wished, limit).sum() <= level:
                high = middle
            else:
                low = middle
        if high > n:
            break
        found.append(high)
    return found


def _crossing(ranks: list[int], limits: list[int], wished: float) -> float:
    """The probability that trials, wrong with 1 - `wished`, are within the limit at some rank."""
    alive, crossed, before = np.ones(1), 0.0, 0
    for rank, limit in zip(ranks, limits, strict=False):
        # States beyond the largest limit never come back.
        more = _binomial(rank - before, 1 - wished, limits[-1])
        alive = np.convolve(alive, more)[: limits[-1] + 1]
        crossed += float(alive[: limit + 1].sum())
        alive[: limit + 1] = 0
        before = rank
    return crossed


def _binomial(n: int, p: float, most: int) -> NDArray[np.float64]:
    """Probabilities of 0 to `most` successes of n, or of 0 to n."""
    most = min(n, most)
    i = np.arange(1, most + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(n - i + 1) - np.log(i))])
    k = np.arange(most + 1)
    found: NDArray[np.float64] = np.exp(logs + k * log(p) + (n - k) * log(1 - p))
    return found
