"""Which image of a pair is doubtful, and the order of the table."""

from __future__ import annotations

import numpy as np

from labelcurve.training.audit import findings
from labelcurve.training.audit.duplicates import Pairs
from labelcurve.training.audit.findings import Looked
from labelcurve.training.audit.labels import Judged

NONE = Pairs(np.zeros((0, 2), np.int64), np.zeros(0))


def judged(probabilities: list[list[float]], doubtful: list[bool]) -> Judged:
    found = np.array(probabilities)
    return Judged(found, np.array(doubtful), np.where(doubtful, 0.1, 0.9))


def test_of_same_pixels_the_label_that_the_head_does_not_give_is_the_conflict() -> None:
    looked = Looked(np.array([0, 1, 0]), np.zeros(3, bool), np.array([7, 7, 8]), NONE)
    found = findings.collect(looked, judged([[0.2, 0.8]] * 2 + [[0.9, 0.1]], [False] * 3), {})
    assert [(f.row, f.kind, f.suggested, f.other) for f in found[0]] == [
        (0, "conflict", 1, 1),
        (0, "duplicate", None, 1),
    ]
    assert len(found) == 1
    names = {0: "a/1.png", 1: "b/2.png"}
    labels = {0: "a", 1: "b"}
    assert findings.reason(found[0], names, labels) == "conflict: same pixels as b/2.png (b)"


def test_of_a_pair_across_the_splits_the_training_image_is_the_doubtful_one() -> None:
    pairs = Pairs(np.array([[0, 2]]), np.array([0.95]))
    looked = Looked(np.zeros(3, int), np.array([False, False, True]), np.arange(3), pairs)
    found = findings.collect(looked, judged([[0.9, 0.1]] * 3, [False] * 3), {})
    (only,) = found
    assert [(f.row, f.kind, f.score, f.near) for f in only] == [
        (0, "in train and test", 0.95, True)
    ]


def test_the_table_is_in_the_order_of_the_kinds_then_of_the_scores() -> None:
    looked = Looked(np.array([0, 0, 0, 1]), np.zeros(4, bool), np.arange(4), NONE)
    wrong = judged([[0.4, 0.6], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]], [True, True, False, False])
    wrong.quality[:2] = 0.4, 0.1
    found = findings.collect(looked, wrong, {2: ("blank", 0.7), 1: ("dark", 0.6)})
    assert [[f.kind for f in of] for of in found] == [["blank"], ["dark", "label"], ["label"]]
    assert [of[0].row for of in found] == [2, 1, 0]
    assert found[1][1].score == 0.9


def test_images_that_only_a_chain_connects_are_not_compared() -> None:
    # 0 and 1 were matched, and 1 and 2, and 2 and 3; only the last two differ in their label.
    pairs = Pairs(np.array([[0, 1], [1, 2], [2, 3]]), np.array([0.97, 0.95, 0.92]))
    looked = Looked(np.array([0, 0, 0, 1]), np.zeros(4, bool), np.arange(4), pairs)
    found = findings.collect(looked, judged([[0.9, 0.1]] * 3 + [[0.6, 0.4]], [False] * 4), {})
    assert [[(f.row, f.kind, f.score, f.other) for f in of] for of in found] == [
        [(3, "conflict", 0.92, 2), (3, "duplicate", 0.92, 2)],
        [(1, "duplicate", 0.97, 0)],
    ]


def test_of_copies_the_one_that_is_kept_stands_for_them_in_a_pair() -> None:
    pairs = Pairs(np.array([[0, 2]]), np.array([0.95]))
    tested = np.array([False, True, False])
    looked = Looked(np.zeros(3, int), tested, np.array([0, 0, 1]), pairs)
    found = findings.collect(looked, judged([[0.9, 0.1]] * 3, [False] * 3), {})
    assert [[(f.row, f.kind, f.score, f.other) for f in of] for of in found] == [
        [(0, "in train and test", 1.0, 1)],
        [(2, "in train and test", 0.95, 1)],
    ]


def test_blank_dark_and_bright_images_are_named_and_others_are_not() -> None:
    random = np.random.default_rng(0)
    noise = random.integers(0, 24, (16, 16, 3))
    page = np.full((16, 16, 3), 255)
    page[4:8, 4:8] = 0  # a few dark strokes on white paper
    images = np.stack(
        [np.full((16, 16, 3), 128), noise, 255 - noise, noise * 10, page, 255 - page]
    ).astype(np.uint8)
    found = findings.showing_nothing(len(images), lambda rows: images[rows])
    assert {row: kind for row, (kind, _) in found.items()} == {0: "blank", 1: "dark", 2: "bright"}
    assert all(0.5 <= score <= 1 for _, score in found.values())
