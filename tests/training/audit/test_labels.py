"""Doubtful labels on classes that are known."""

from __future__ import annotations

import numpy as np

from labelcurve.training.audit import labels
from labelcurve.training.forecast import head

CLASSES = 4


def blobs(n: int, seed: int) -> tuple[head.Rows, np.ndarray]:
    """Features of classes that overlap a little, and the classes."""
    random = np.random.default_rng(seed)
    classes = random.integers(0, CLASSES, n)
    centres = np.eye(CLASSES, 16) * 3
    return (centres[classes] + random.normal(size=(n, 16))).astype(np.float32), classes


def test_flipped_labels_are_doubted_and_come_first() -> None:
    features, truth = blobs(800, 1)
    random = np.random.default_rng(2)
    flipped = random.choice(800, 40, replace=False)
    given = truth.copy()
    given[flipped] = (given[flipped] + random.integers(1, CLASSES, 40)) % CLASSES
    rows = head.standardise(features)
    judged = labels.judge(labels.scores(rows, given, CLASSES), given)
    wrong = np.isin(np.arange(800), flipped)
    assert (judged.doubtful & wrong).sum() > 30
    first = np.argsort(judged.quality)[:30]
    assert wrong[first].mean() > 0.8
    suggested = judged.probabilities.argmax(axis=1)
    assert (suggested[judged.doubtful] != given[judged.doubtful]).all()
    assert (suggested[judged.doubtful & wrong] == truth[judged.doubtful & wrong]).mean() > 0.9


def test_copies_in_one_group_do_not_vouch_for_each_other() -> None:
    features, truth = blobs(200, 3)
    given = np.append(truth, (truth[0] + 1) % CLASSES)
    given[0] = given[-1]
    # A head trained on some of the 40 copies with a wrong label would reproduce it.
    copies = np.repeat(features[:1], 40, axis=0)
    rows = head.standardise(np.concatenate([features, copies]))
    classes = np.concatenate([given[:200], np.full(40, given[0])])
    groups = np.concatenate([np.arange(200), np.zeros(40, int)])
    apart = labels.scores(rows, classes, CLASSES)
    together = labels.scores(rows, classes, CLASSES, groups=groups)
    assert apart[0].argmax() == given[0]
    assert together[0].argmax() == truth[0]


def test_the_effect_compares_on_the_same_labels() -> None:
    features, truth = blobs(400, 5)
    given = truth.copy()
    given[:60] = (given[:60] + 1) % CLASSES
    rows = head.standardise(features)
    sure = np.arange(400) >= 60
    all_of_them = labels.scores(rows, given, CLASSES)
    without = labels.scores(rows, given, CLASSES, used=sure)
    found = labels.effect(all_of_them, without, given, sure)
    assert (found.n, found.n_without) == (400, 340)
    assert found.as_it_is < found.learned_with <= found.learned_without + 0.02
