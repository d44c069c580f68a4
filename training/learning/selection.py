"""Selection of images to label next: typical ones first, then those a classifier is unsure of.

Without labels, or with few, the most typical image of each cluster of the embedding (TypiClust,
Hacohen et al., 2022), clusters without a label before others and large before small. With more, the
images with the smallest margin between the two most probable classes, and of these one from each
cluster, so that they differ (Cluster-Margin, Citovsky et al., 2021).
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from labelcurve.training.data.source import Index

Rows = NDArray[np.float32]
Strategy = Literal["typical", "unsure", "random"]

FEW = 10
"""Labels a class, below which typical images are chosen."""
MANY = 200
"""Labels a class, above which it was not measured whether any choice beats random images."""
FEWEST = 3
"""Images of the pool for each that is chosen: with fewer, random ones are as good."""
CLUSTERS = 500
"""Most clusters."""
NEIGHBOURS = 20
"""Images of the cluster that an image is typical of."""
CANDIDATES = 10
"""Unsure images that one is chosen from."""
MOST = 20_000
"""Images that are considered; of more, a random sample: the time grows with their number."""
RANDOM = 0.2
"""Share that is drawn at random, for an unbiased test."""


def strategy(n_labels: int, n_classes: int, n_pool: int, n: int) -> Strategy:
    """The strategy that beats random images, as far as that was measured (docs/labelling.md).

    Args:
        n_labels: that there are.
        n_classes: that they are of; 0 without labels.
        n_pool: images without a label.
        n: images to choose.
    """
    if n * FEWEST > n_pool or n_labels > MANY * max(1, n_classes):
        return "random"
    return "unsure" if n_classes and n_labels >= FEW * n_classes else "typical"


def unit(features: Rows) -> Rows:
    """Standardised features, float32 [N, D], at length 1."""
    spread = features.std(axis=0)
    live = spread > 1e-6 * max(float(spread.max()), 1e-9)
    scaled = (features[:, live] - features[:, live].mean(axis=0)) / spread[live]
    found: Rows = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-9)
    return found


def margin(probabilities: NDArray[np.floating]) -> NDArray[np.floating]:
    """Between the two most probable classes, [N] of [N, K]: small where it is unsure."""
    best = np.partition(probabilities, -2, axis=1)[:, -2:]
    found: NDArray[np.floating] = best[:, 1] - best[:, 0]
    return found


def typical(features: Rows, labelled: Index, pool: Index, n: int, seed: int) -> Index:
    """Typical images of clusters that no label is in.

    Args:
        features: [N, D], as `unit` gives them.
        labelled: rows that have a label.
        pool: rows to choose from.
        n: how many, at most all of the pool.
        seed: of the clusters.

    Returns:
        Rows of the pool, [n], most typical of the largest cluster first.
    """
    rows = np.concatenate([labelled, pool]).astype(np.int64)
    cluster = _clusters(features[rows], min(len(labelled) + n, CLUSTERS), seed)
    has = np.bincount(cluster[: len(labelled)], minlength=cluster.max() + 1)
    size = np.bincount(cluster, minlength=len(has))
    queues = []
    for number in sorted(range(len(has)), key=lambda c: (has[c], -size[c])):
        inside = np.flatnonzero(cluster == number)
        candidates = inside[inside >= len(labelled)]
        if len(candidates):
            similar = features[rows[candidates]] @ features[rows[inside]].T
            near = np.sort(similar, axis=1)[:, -NEIGHBOURS:].mean(axis=1)
            queues.append(rows[candidates[(-near).argsort(kind="stable")]].tolist())
    # One of each cluster, then the second of each.
    longest = max(map(len, queues))
    found = [queue[i] for i in range(longest) for queue in queues if i < len(queue)]
    return np.asarray(found[:n], np.int64)


def unsure(
    features: Rows, probabilities: NDArray[np.floating], pool: Index, n: int, seed: int
) -> Index:
    """Images with a small margin that differ from one another.

    Args:
        features: [N, D], as `unit` gives them.
        probabilities: [N, K], of every row.
        pool: rows to choose from.
        n: how many, at most all of the pool.
        seed: of the clusters.

    Returns:
        Rows of the pool, [n], least sure first.
    """
    sure = margin(probabilities[pool])
    order = sure.argsort(kind="stable")[: CANDIDATES * n]
    candidates, sure = pool[order], sure[order]
    if len(candidates) <= n:
        return candidates
    cluster = _clusters(features[candidates], n, seed, weights=1 - sure)
    found = []
    for number in range(cluster.max() + 1):
        inside = np.flatnonzero(cluster == number)
        if len(inside):
            centre = features[candidates[inside]].mean(axis=0)
            found.append(inside[(features[candidates[inside]] @ centre).argmax()])
    # Where clusters became empty, the least sure of all fill up.
    others = np.setdiff1d(np.arange(len(candidates)), found)[: n - len(found)]
    chosen: Index = candidates[np.sort(np.concatenate([found, others]).astype(np.int64))]
    return chosen


def _clusters(
    features: Rows, n: int, seed: int, weights: NDArray[np.floating] | None = None
) -> NDArray[np.int32]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if not features.shape[1]:  # all images are alike
        return np.zeros(len(features), np.int32)
    means = KMeans(n, n_init=1, max_iter=30, random_state=seed)
    with warnings.catch_warnings():
        # Of copies there are fewer clusters, and the callers fill up.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = means.fit(features, sample_weight=weights)
    labels: NDArray[np.int32] = found.labels_
    return labels
