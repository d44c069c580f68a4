from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold

from labelcurve.training.data.source import Index
from labelcurve.training.models import propagation
from labelcurve.training.models.linear_head import LinearHead, fit_linear
from labelcurve.training.models.propagation import Neighbours, Pool, Trial, spread

N, M = 900, 80
"""Images, of which the first M have a label; the others are unseen."""


def digits() -> tuple[NDArray[np.float32], Index]:
    """Pixels and classes, eight of each class first."""
    pixels, classes = load_digits(return_X_y=True)
    random = np.random.default_rng(1)
    own = [np.flatnonzero(classes[:N] == label) for label in range(10)]
    rows = np.concatenate([random.choice(each, 8, replace=False) for each in own])
    order = np.concatenate([rows, np.setdiff1d(np.arange(len(classes)), rows)])
    return pixels[order].astype(np.float32), classes[order].astype(np.int32)


def fitted(features: NDArray[np.float32], classes: Index, n: int = M) -> LinearHead:
    return fit_linear(features[:n], classes[:n], 10, penalty=0.1, balanced=False)


def right(answers: NDArray[np.float32], classes: Index) -> float:
    return float((answers.argmax(axis=1) == classes).mean())


def scaled(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Zero mean and unit variance, constant columns zero."""
    deviation = features.std(0).astype(np.float64)
    return np.asarray((features - features.mean(0)) / np.where(deviation > 1e-6, deviation, 1))


def cosines(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows @ rows.T)


def weights(likeness: NDArray[np.float64]) -> NDArray[np.float64]:
    """The graph by hand: five neighbours of each, cubed, symmetric, scaled by both ends."""
    likeness = likeness - 9 * np.eye(len(likeness))
    edges = np.zeros_like(likeness)
    for i, near in enumerate(np.argsort(-likeness, axis=1)[:, :5]):
        edges[i, near] = np.maximum(likeness[i, near], 0) ** 3
    edges = (edges + edges.T) / 2
    degree = edges.sum(1)
    return np.asarray(edges / np.sqrt(np.outer(degree, degree)))


def test_answers_of_neighbours_are_better_than_those_of_the_head() -> None:
    features, classes = digits()
    before = propagation.probabilities(fitted(features, classes), features[:N])
    after = spread(Neighbours(features[:N]).graph(), before, np.arange(M), classes[:M])
    assert right(after, classes[:N]) > right(before, classes[:N]) + 0.02
    assert after.dtype == np.float32
    assert np.abs(after.sum(axis=1) - 1).max() < 1e-5
    assert np.array_equal(after[:M], np.eye(10)[classes[:M]]), "labels stay as they are"


def test_it_is_the_fixed_point_of_the_source_on_a_dense_graph() -> None:
    features, classes = digits()
    some, known = features[:M:2], np.arange(5)
    random = np.random.default_rng(0)
    answers = softmax(random.normal(size=(len(some), 10)), axis=1).astype(np.float32)
    found = spread(Neighbours(some).graph(), answers, known, classes[:M:2][:5])

    start = 0.1 * answers
    start[known] = np.eye(10)[classes[:M:2][:5]]
    exact = np.linalg.solve(np.eye(len(some)) - 0.85 * weights(cosines(scaled(some))), 0.15 * start)
    exact /= exact.sum(1, keepdims=True)
    exact[known] = start[known]
    assert np.abs(found - exact).max() < 1e-3


def test_images_that_nothing_is_next_to_keep_the_answer_of_the_head() -> None:
    features = np.eye(4, dtype=np.float32)  # at right angles once standardised, or wider
    answers = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]], np.float32)
    none = np.zeros(0, np.int32)
    assert spread(Neighbours(features).graph(), answers, none, none) == pytest.approx(
        answers, abs=1e-6
    )


def test_the_head_learns_from_images_without_labels() -> None:
    features, classes = digits()
    before = fitted(features, classes)
    after = Pool(features[:N], classes[:M]).learned(before)
    unseen, truth = features[N:], classes[N:]
    gain = right(after.logits(unseen), truth) - right(before.logits(unseen), truth)
    assert gain > 0.02
    assert after.n_unlabelled == N - M
    assert (after.penalty, after.balanced) == (before.penalty, before.balanced)
    assert after.choices() == replace(before, n_unlabelled=N - M).choices()
    assert before.choices() != after.choices()


def test_its_head_is_the_optimum_for_the_answers_of_the_last_pass() -> None:
    features, classes = digits()
    pool = features[:300]
    head = fitted(features, classes)
    found = Pool(pool, classes[:M]).learned(head)
    answers, seen = propagation.probabilities(head, pool), None
    for _ in range(3):
        answers = spread(Neighbours(pool).graph(seen), answers, np.arange(M), classes[:M])
        weight, bias = propagation._fit(pool, answers)
        seen = softmax(pool @ weight.T + bias, axis=1)
    scale = np.where(pool.std(0) > 1e-6, pool.std(0), 1)
    wrong = softmax(found.logits(pool).astype(np.float64), axis=1) - answers
    slope = wrong.T @ ((pool - pool.mean(0)) / scale) / len(pool) + 0.1 * found.weight * scale
    assert np.abs(slope).max() < 1e-3
    assert np.abs(wrong.mean(0)).max() < 1e-3


def test_alike_answers_make_images_neighbours() -> None:
    features = np.random.default_rng(0).normal(size=(60, 20)).astype(np.float32)
    classes = np.arange(60) % 2
    answers = np.where(classes[:, None] == np.arange(2), 0.9, 0.1).astype(np.float32)
    near = Neighbours(features)
    same = [
        (graph.toarray() * (classes[:, None] == classes)).sum() / graph.sum()
        for graph in (near.graph(), near.graph(answers))
    ]
    assert same[0] < 0.7
    assert same[1] == pytest.approx(1)


def test_answers_are_alike_by_the_cosine_of_their_logarithms_above_the_mean() -> None:
    """The edges by hand, of 14 images, all of which are candidates."""
    random = np.random.default_rng(0)
    features = random.normal(size=(14, 3)).astype(np.float32)
    answers = softmax(2 * random.normal(size=(14, 3)), axis=1).astype(np.float32)

    log = np.log(np.maximum(answers.astype(np.float64), 1e-12))
    both = (cosines(scaled(features)) + cosines(log - log.mean(axis=0))) / 2
    found = Neighbours(features).graph(answers).toarray()
    assert found == pytest.approx(weights(both), abs=1e-4)


def test_answers_of_one_pass_are_those_of_the_labels_in_the_other_folds() -> None:
    features, classes = digits()
    head = fit_linear(features[:M], classes[:M], 10, penalty=0.1, balanced=True)
    found = Pool(features[:300], classes[:M]).tried(head, seed=5)
    assert found is not None
    order = np.random.default_rng(5).permutation(M)
    folds = StratifiedKFold(5, shuffle=True, random_state=5).split(order, classes[order])
    graph, right = Neighbours(features[:300]).graph(), np.zeros((2, M), bool)
    for learn, held in ((order[part] for part in parts) for parts in folds):
        own = fit_linear(features[learn], classes[learn], 10, penalty=0.1, balanced=True)
        before = propagation.probabilities(own, features[:300])
        after = propagation.spread(graph, before, learn, classes[learn])
        for i, answers in enumerate((before, after)):
            right[i, held] = answers[held].argmax(axis=1) == classes[held]
    assert (found.head, found.propagated) == (right[0].mean(), right[1].mean())
    difference = right[1].astype(float) - right[0]
    assert found.error == pytest.approx(difference.std() / np.sqrt(M), rel=0.02)


def test_cross_validation_says_what_it_would_gain() -> None:
    features, classes = digits()
    head = fit_linear(features[:M], classes[:M], 10, seed=3)
    found = Pool(features[:N], classes[:M]).tried(head, seed=3)
    assert found is not None
    # In the folds that chose the penalty; there each fit started from the previous one.
    assert found.head == pytest.approx(head.accuracy, abs=1.5 / M)
    assert found.propagated > found.head + found.error
    assert not found.worse
    assert Pool(features[:N], classes[:M]).tried(head, seed=3) == found


def test_cross_validation_refuses_it_where_neighbours_are_strangers() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(600, 60)).astype(np.float32)
    classes = (features[:, 0] > 0).astype(np.int32)  # one feature of sixty tells the class
    head = fit_linear(features[:200], classes[:200], 2, penalty=0.1, balanced=False)
    found = Pool(features, classes[:200]).tried(head, seed=0)
    assert found is not None
    assert found.worse
    assert found.head > 0.8


def test_one_label_of_a_class_leaves_nothing_to_try() -> None:
    features, classes = digits()
    features, labels = features[7:N], classes[7:M]  # of the first class one
    head = fit_linear(features[: M - 7], labels, 10, penalty=0.1, balanced=False)
    assert Pool(features, labels).tried(head, seed=0) is None


def test_a_loss_within_two_errors_does_not_count() -> None:
    assert Trial(0.80, 0.75, 0.02).worse
    assert not Trial(0.80, 0.77, 0.02).worse
    assert not Trial(0.80, 0.90, 0.02).worse
