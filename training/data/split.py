"""Decoded images with their labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from labelcurve.training.data.decoded.digests import Digests
from labelcurve.training.data.decoded.stored import Images, joined, take
from labelcurve.training.data.source import Index


@dataclass(frozen=True)
class Split:
    """Rows in the order of their digests, whatever the names and formats of the files."""

    images: Images
    """[N, size, size, 3], as `bundle.preprocess.prepare` gives them; read-only, and outside memory
    where they are too many for it."""
    labels: Index
    """[N], indices into the data set's `class_names`; `UNLABELLED` (-1) for images without a label,
    which only the training split has."""
    digests: Digests
    """[N] SHA-256 of the pixels before resizing."""
    read: Callable[[int], bytes]
    """Returns the original file bytes of a row."""
    where: Callable[[int], str]
    """Returns where a row comes from, for messages."""

    @property
    def n_labelled(self) -> int:
        """Rows that have a label."""
        return int((self.labels >= 0).sum())

    def take(self, rows: Index) -> Split:
        """The given rows, in the given order."""
        read, where, rows = self.read, self.where, rows.astype(np.int32, copy=False)
        return Split(
            take(self.images, rows),
            self.labels[rows],
            self.digests.take(rows),
            lambda i: read(int(rows[i])),
            lambda i: where(int(rows[i])),
        )

    def joined(self, others: Split) -> Split:
        """The rows of this split, and then those of another one of the same source."""
        n = len(self)
        return Split(
            joined(self.images, others.images),
            np.concatenate([self.labels, others.labels]),
            self.digests.joined(others.digests),
            lambda i: self.read(i) if i < n else others.read(i - n),
            lambda i: self.where(i) if i < n else others.where(i - n),
        )

    def __len__(self) -> int:
        return len(self.labels)
