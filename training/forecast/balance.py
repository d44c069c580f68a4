"""Context of an accuracy: the share of the most frequent class, and the recall of each class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from labelcurve.bundle.text import listed
from labelcurve.training.data.source import Index
from labelcurve.training.forecast.measurement import Measured

LARGE = 0.5
"""Share of a class from which a sentence says what always guessing it would give."""
HANDFUL = 5
"""Labels of a class below which it is named."""
NAMED = 5


@dataclass(frozen=True)
class Balance:
    """Classes, their labels, and how many of their images were recognised."""

    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    share: float
    """Of the most frequent class among the tested images: the accuracy of always guessing it."""
    frequent: int
    recalls: tuple[float | None, ...]
    """Of each class, with the most labels; None where no image of it was tested."""

    @property
    def balanced(self) -> float:
        """Mean recall of the classes that were tested."""
        return float(np.mean([recall for recall in self.recalls if recall is not None]))


def balance(
    measured: Measured, labels: Index, tested: Index, class_names: tuple[str, ...]
) -> Balance:
    """Counts classes.

    Args:
        measured: its last size is taken.
        labels: [N] that were trained on.
        tested: [M] of the images that were tested.
    """
    right = ~measured.wrong[:, :, -1]
    recalls = [
        float(right[:, tested == label].mean()) if (tested == label).any() else None
        for label in range(len(class_names))
    ]
    counts = np.bincount(labels, minlength=len(class_names))
    among = np.bincount(tested, minlength=len(class_names))
    return Balance(
        class_names=class_names,
        counts=tuple(counts.tolist()),
        share=float(among.max() / among.sum()),
        frequent=int(among.argmax()),
        recalls=tuple(recalls),
    )


def said(found: Balance) -> str | None:
    """Says which classes an accuracy hides; None where there are none."""
    few = [
        f"'{name}' ({n:,})"
        for name, n in zip(found.class_names, found.counts, strict=True)
        if n < HANDFUL
    ]
    if found.share <= LARGE and not few:
        return None
    parts = []
    if found.share > LARGE:
        parts.append(
            f"always guessing '{found.class_names[found.frequent]}' would give "
            f"{found.share * 100:.1f} % accuracy"
        )
    if few:
        parts.append(
            f"{len(few):,} {'class' if len(few) == 1 else 'classes'} "
            f"with fewer than {HANDFUL} labels: {listed(few, NAMED)}"
        )
    missed = [
        f"'{name}'"
        for name, recall in zip(found.class_names, found.recalls, strict=True)
        if recall == 0
    ]
    mean = f"the mean over classes (balanced accuracy) is {found.balanced * 100:.1f} %"
    if missed:
        mean += f", and no image of {listed(missed, NAMED)} was recognised"
    return f"What accuracy hides: {'; '.join([*parts, mean])}."
