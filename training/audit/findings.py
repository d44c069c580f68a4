"""Findings per image: the rows of the table, most doubtful first, and images that show nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelcurve.training.audit.duplicates import AT_ONCE, Pairs, Read, groups
from labelcurve.training.audit.labels import Judged
from labelcurve.training.data.source import Index

KINDS = (
    "unreadable",
    "conflict",
    "blank",
    "dark",
    "bright",
    "label",
    "in train and test",
    "duplicate",
)
"""Reasons, in the order of the table; within one the highest score comes first."""
LEAST_RANGE = 10.0
"""Grey values between the 1st and the 99th percentile, below which an image is blank."""
DARK, BRIGHT = 32.0, 223.0
"""Grey values: dark where the 99th percentile lies below, bright where the 1st lies above."""


@dataclass(frozen=True)
class Finding:
    """One doubtful image."""

    row: int
    kind: str
    """One of `KINDS`."""
    score: float
    """Degree of doubt from 0 to 1."""
    suggested: int | None = None
    """The class that it may be."""
    other: int | None = None
    """The row of the image that it repeats."""
    near: bool = False
    """Whether the pixels of the two differ."""


@dataclass(frozen=True)
class Looked:
    """Data on all labelled images, the training images first."""

    labels: Index
    """[N]"""
    tested: NDArray[np.bool_]
    """[N] Images of the test split."""
    copies: NDArray[np.int64]
    """[N] A number, the same for the same pixels."""
    pairs: Pairs

    def alike(self) -> NDArray[np.int64]:
        """A number for each image, the same for copies and near-duplicates; [N]."""
        order = np.argsort(self.copies, kind="stable")
        same = np.flatnonzero(np.diff(self.copies[order]) == 0)
        copies = np.stack([order[same], order[same + 1]], axis=1)
        return groups(len(self.labels), np.concatenate([copies, self.pairs.rows]))


def showing_nothing(n: int, read: Read) -> dict[int, tuple[str, float]]:
    """The images that show nothing: by row the reason, and how sure it is, from 0.5 to 1."""
    found: dict[int, tuple[str, float]] = {}
    for first in range(0, n, AT_ONCE):
        grey = read(np.arange(first, min(n, first + AT_ONCE))).mean(axis=3, dtype=np.float32)
        low, high = np.percentile(grey.reshape(len(grey), -1), (1, 99), axis=1)
        for row in np.flatnonzero((high - low < LEAST_RANGE) | (high < DARK) | (low > BRIGHT)):
            place = first + int(row)
            if high[row] - low[row] < LEAST_RANGE:
                found[place] = "blank", 1 - 0.5 * float(high[row] - low[row]) / LEAST_RANGE
            elif high[row] < DARK:
                found[place] = "dark", 1 - 0.5 * float(high[row]) / DARK
            else:
                found[place] = "bright", 1 - 0.5 * float(255 - low[row]) / (255 - BRIGHT)
    return found


def collect(
    looked: Looked, judged: Judged, empty: dict[int, tuple[str, float]]
) -> list[list[Finding]]:
    """All findings by image, the most serious of an image first, the images in the table's order.

    Args:
        empty: those that show nothing, as `showing_nothing` gives them.
    """
    found = [Finding(row, kind, score) for row, (kind, score) in empty.items()]
    found += [
        Finding(int(row), "label", float(1 - judged.quality[row]), int(suggested))
        for row in np.flatnonzero(judged.doubtful)
        if (suggested := judged.probabilities[row].argmax()) != looked.labels[row]
    ]
    found += _repeated(looked, judged)
    by_row: dict[int, list[Finding]] = {}
    for each in sorted(found, key=lambda f: (KINDS.index(f.kind), -f.score, f.row)):
        by_row.setdefault(each.row, []).append(each)
    return list(by_row.values())


def _repeated(looked: Looked, judged: Judged) -> list[Finding]:
    """Conflicts and duplicates.

    Of images with the same pixels, all but one are listed. Of a near-duplicate pair one is; a pair
    of which a training image is listed already adds nothing, so that of a chain some image stays.
    Two images that only a chain connects are not compared: they may show different things.
    """
    found: list[Finding] = []
    order = np.argsort(looked.copies, kind="stable")
    same = np.split(order, np.flatnonzero(np.diff(looked.copies[order])) + 1)
    kept = np.arange(len(order))
    for part in same:
        if len(part) > 1:
            kept[part], listed = _group(looked, judged, part, 1.0)
            found += listed
    pairs, similarity = kept[looked.pairs.rows], looked.pairs.similarity
    agree = looked.labels[pairs[:, 0]] == looked.labels[pairs[:, 1]]
    gone: set[int] = set()
    for each in np.lexsort((-similarity, agree)):  # conflicts first
        if gone.isdisjoint(pairs[each].tolist()):
            _, listed = _group(looked, judged, pairs[each], float(similarity[each]))
            found += listed
            # A test image stays in the test whatever is found.
            gone |= {f.row for f in listed if not looked.tested[f.row]}
    return found


def _group(
    looked: Looked, judged: Judged, part: NDArray[np.int64], score: float
) -> tuple[int, list[Finding]]:
    """The image that is kept of some with the same content, and the findings of the others."""
    labels = looked.labels[part]
    classes = np.unique(labels)
    # Of the copies' labels, the one with most support from the copies and the head.
    votes = [judged.probabilities[part, each].mean() + (labels == each).mean() for each in classes]
    label = int(classes[int(np.argmax(votes))])
    right = part[labels == label]
    # A test image is kept before a training image: leaving the latter out ends the leak.
    kept = int(right[np.argmax(looked.tested[right])])
    found = []
    for row in map(int, part):
        if row == kept:
            continue
        near = bool(looked.copies[row] != looked.copies[kept])
        if looked.labels[row] != label:
            found.append(Finding(row, "conflict", score, label, kept, near))
        crosses = looked.tested[kept] and not looked.tested[row]
        kind = "in train and test" if crosses else "duplicate"
        found.append(Finding(row, kind, score, None, kept, near))
    return kept, found


def reason(of: Sequence[Finding], name: Mapping[int, str], labels: Mapping[int, str]) -> str:
    """The reason why an image is listed, in words: its kinds, each with the evidence.

    Args:
        name: names of these images and of those that they repeat.
        labels: names of their classes.
    """
    said = []
    for each in of:
        if each.other is None:
            said.append(each.kind)
        else:
            how = "near-duplicate of" if each.near else "same pixels as"
            other = f"{name[each.other]} ({labels[each.other]})"
            said.append(f"{each.kind}: {how} {other}")
    # A conflict names the other image already.
    if of[0].kind == "conflict":
        said = [text for text in said if not text.startswith("duplicate:")]
    return "; ".join(said)
