"""Images with the same pixels count once: tested on a copy, a model seems too good.

Nor is there anything to learn from copies, so a curve over them would promise a gain that labels
of other images do not deliver.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelcurve.bundle.text import counted
from labelcurve.training.data import checks
from labelcurve.training.data.dataset import Data

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Distinct:
    """The labelled images to measure on."""

    train: Places
    """Rows of the training split, ascending."""
    test: Places
    """Rows of the test split, ascending: all of one that is given."""
    copies: int
    """Labels that are left out."""
    n_labels: int
    """Labels that are left, without those of a given test split."""


def distinct(images: Data, seed: int) -> Distinct:
    """Chooses one row of all with the same pixels.

    Which one is random, since their labels may differ. Where a test split is given, training images
    that are also in it are left out.

    Args:
        images: all of them labelled.
    """
    n_train, n_test = len(images.train), len(images.test)
    splits = [images.train] if images.test_given else [images.train, images.test]
    digests = np.concatenate([split.digests[:] for split in splits if len(split)])
    order = np.random.default_rng(seed).permutation(len(digests))
    _, first = np.unique(digests[order], return_index=True)
    rows = np.sort(order[first])
    if images.test_given:
        rows = rows[checks.in_test(images.train, images.test)[rows] < 0]
        return Distinct(rows, np.arange(n_test), n_train - len(rows), len(rows))
    train, test = rows[rows < n_train], rows[rows >= n_train] - n_train
    return Distinct(train, test, n_train + n_test - len(rows), len(rows))


def said(found: Distinct, test_given: bool) -> str:
    """Says how many labels are left out, and why."""
    left = found.n_labels
    verb = "is of an image" if found.copies == 1 else "are of images"
    where = " or that are in test" if test_given else ""
    return (
        f"{found.copies:,} of {counted(left + found.copies, 'label')} {verb} with the same pixels "
        f"as others{where}: each image counts once here, so that none is both trained on "
        f"and tested, and {left:,} labels are left"
    )
