"""Label propagation: images without labels take answers from their neighbours.

A classifier with few labels answers each image by itself. In a graph of nearest neighbours the
labels pass from image to image, and so follow the clusters that the features form. The head is
then trained on these answers, and its own answers make the graph of the next pass.

Source: D. Zhou et al., Learning with local and global consistency, 2003; the weights of the edges
as in A. Iscen et al., Label propagation for deep semi-supervised learning, 2019. Images without
labels begin with a part of the classifier's answers instead of zero (docs/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import log_softmax, softmax

from labelcurve.training.data.source import Index
from labelcurve.training.learning.metrics import paired_error
from labelcurve.training.models.linear_head import FOLDS, LinearHead, fit_linear, moments

NEIGHBOURS = 5
CANDIDATES = 30
"""Images that are nearest by features, of which `NEIGHBOURS` are taken by features and answers."""
EXPONENT = 3
"""Of the cosine of two images' features, as the weight of their edge."""
SPREADING = 0.85
"""Share of an image's answer that comes from its neighbours, the alpha of the source."""
OWN = 0.1
"""Weight of the classifier's answer to an image without a label; a label has 1."""
STEPS = 60
"""Of the iteration; what is left after them is below SPREADING ** STEPS = 6e-5."""
PASSES = 3
"""Passes of propagation and fit; from the second on, similar answers also count as close."""
PENALTY = 0.1
"""L2 penalty of the head that learns the answers, as in `linear_head`."""

Answers = NDArray[np.float32]
"""Probabilities, [N, K]."""


@dataclass(frozen=True)
class Trial:
    """Cross-validated accuracy on the labels, of a head and of the answers after propagation."""

    head: float
    propagated: float
    error: float
    """Standard error of the difference."""

    @property
    def worse(self) -> bool:
        """Whether propagation loses more than twice the error of the difference: with few labels
        that is a wide margin, and wherever it was measured propagation gained (docs/log.md)."""
        return self.head - self.propagated > 2 * self.error


class Neighbours:
    """The nearest images of each image.

    Args:
        features: float32 [N, D], at least two rows.
    """

    def __init__(self, features: NDArray[np.float32]) -> None:
        from sklearn.neighbors import NearestNeighbors

        mean, scale = moments(features)
        points = (features - mean) / scale
        search = NearestNeighbors(metric="cosine", algorithm="brute").fit(points)
        distances, self._near = search.kneighbors(n_neighbors=min(CANDIDATES, len(points) - 1))
        self._cosines = (1 - distances).astype(np.float32)
        """[N, C], of the images `_near`, whose rows are [N, C], too."""

    def graph(self, answers: Answers | None = None) -> sparse.csr_array:
        """The graph of the nearest of them: [N, N] weights, scaled by the sums of both ends.

        Args:
            answers: [N, K], whose likeness counts as much as that of the features, where given.
        """
        cosines = self._cosines
        if answers is not None:
            log = np.log(np.maximum(answers, 1e-12))
            log -= log.mean(axis=0)
            log /= np.maximum(np.linalg.norm(log, axis=1, keepdims=True), 1e-12)
            # For vectors made of two unit vectors, the cosine is the mean of both cosines.
            cosines = (cosines + np.einsum("nk,nck->nc", log, log[self._near])) / 2
        n, near = len(cosines), min(NEIGHBOURS, cosines.shape[1])
        best = np.argpartition(-cosines, near - 1, axis=1)[:, :near]
        weights = np.maximum(np.take_along_axis(cosines, best, axis=1), 0) ** EXPONENT
        columns = np.take_along_axis(self._near, best, axis=1)
        ends = np.arange(0, n * near + 1, near)
        edges = sparse.csr_array((weights.ravel(), columns.ravel(), ends), shape=(n, n))
        edges = (edges + edges.T) / 2
        degree = np.asarray(edges.sum(axis=1)).ravel()
        root = sparse.diags_array(1 / np.sqrt(np.maximum(degree, 1e-12)))
        return sparse.csr_array(root @ edges @ root)


def spread(graph: sparse.csr_array, answers: Answers, rows: Index, labels: Index) -> Answers:
    """The answers after propagation, float32 [N, K]; rows with a label have that.

    Args:
        graph: of `Neighbours`.
        answers: of a classifier.
        rows: those with a label, [M].
        labels: theirs, [M].
    """
    start = OWN * answers.astype(np.float64)
    start[rows] = known = np.eye(answers.shape[1])[labels]
    found = start
    for _ in range(STEPS):
        found = SPREADING * (graph @ found) + (1 - SPREADING) * start
    found /= found.sum(axis=1, keepdims=True)
    found[rows] = known
    return found.astype(np.float32)


class Pool:
    """Images with and without labels.

    Args:
        features: float32 [N, D], those of the images with a label first.
        labels: of these, [M].
    """

    def __init__(self, features: NDArray[np.float32], labels: Index) -> None:
        self._features, self._labels = features, labels
        self._rows = np.arange(len(labels))
        self._near = Neighbours(features)

    def learned(self, head: LinearHead) -> LinearHead:
        """The head, fitted on the labels and on the answers to all images."""
        graph, answers = self._near.graph(), probabilities(head, self._features)
        for number in range(PASSES):
            if number:
                graph = self._near.graph(probabilities(head, self._features))
            answers = spread(graph, answers, self._rows, self._labels)
            weight, bias = _fit(self._features, answers)
            head = replace(head, weight=weight, bias=bias)
        return replace(head, n_unlabelled=len(self._features) - len(self._rows))

    def tried(self, head: LinearHead, seed: int) -> Trial | None:
        """Cross-validates the answers of one pass on the labels.

        Args:
            head: its penalty and weights of the classes are those of the folds.
            seed: of the folds, which are those that `fit_linear` chose the penalty in.

        Returns:
            None where a class has a single label, so that nothing can be held out.
        """
        from sklearn.model_selection import StratifiedKFold

        labels, n_classes, graph = self._labels, len(head.bias), self._near.graph()
        folds = min(FOLDS, int(np.bincount(labels, minlength=n_classes).min()))
        if folds < 2:
            return None
        right = np.empty((2, len(labels)), bool)
        order = np.random.default_rng(seed).permutation(len(labels))
        split = StratifiedKFold(folds, shuffle=True, random_state=seed).split(order, labels[order])
        for learn, held in ((order[part] for part in parts) for parts in split):
            own = fit_linear(
                self._features[learn],
                labels[learn],
                n_classes,
                penalty=head.penalty,
                balanced=head.balanced,
            )
            before = probabilities(own, self._features)
            after = spread(graph, before, learn, labels[learn])
            right[0, held], right[1, held] = (
                answers[held].argmax(axis=1) == labels[held] for answers in (before, after)
            )
        return Trial(float(right[0].mean()), float(right[1].mean()), paired_error(*right))


def probabilities(head: LinearHead, features: NDArray[np.float32]) -> Answers:
    """Its answers to images, float32 [N, K]."""
    found: Answers = softmax(head.logits(features), axis=1).astype(np.float32)
    return found


def _fit(
    features: NDArray[np.float32], answers: Answers
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights [K, D] and bias [K] of a multinomial logistic regression on probabilities."""
    from scipy.optimize import minimize

    mean, scale = moments(features)
    standardised = ((features - mean) / scale).astype(np.float64)
    n, dim = standardised.shape
    n_classes = answers.shape[1]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight, bias = flat[: dim * n_classes].reshape(n_classes, dim), flat[dim * n_classes :]
        logits = standardised @ weight.T + bias
        log = log_softmax(logits, axis=1)
        value = -(answers * log).sum() / n + PENALTY / 2 * (weight**2).sum()
        wrong = (np.exp(log) - answers) / n
        slope = wrong.T @ standardised + PENALTY * weight
        return float(value), np.concatenate([slope.ravel(), wrong.sum(axis=0)])

    begin = np.zeros((dim + 1) * n_classes)
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": 100}).x
    weight = found[: dim * n_classes].reshape(n_classes, dim) / scale
    bias = found[dim * n_classes :] - weight @ mean
    return weight.astype(np.float32), bias.astype(np.float32)
