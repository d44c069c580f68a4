"""The rows that a fraction of the labels consists of: stratified, nested and seeded.

One seeded permutation per class for validation and one for training; a fraction is a prefix of
both, so the 10 % lie inside the 50 % (nested few-label subsets as in big_vision's few-shot
evaluators). The permuted rows are in the order of their digests, so the same images give the same
subsets from whatever source. Copies of held-out images are not trained on.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelcurve.bundle.errors import DataError
from labelcurve.training.data import checks
from labelcurve.training.data.source import Index
from labelcurve.training.data.split import Split

HELD_OUT = 10
"""One label in this many is for validation."""


@dataclass(frozen=True)
class Subset:
    """Rows of the training split; no other label may be read."""

    fraction: float
    train: NDArray[np.int32]
    val: NDArray[np.int32]
    val_pool: NDArray[np.int32]
    """Rows held out at fraction 1, of which `val` is a part."""
    hash: str
    """SHA-256 over the digests of the rows in `train` and `val`."""
    copied: int = 0
    """Labels that are not in `train`, since a held-out image has the same pixels."""


def counts(n: int, fraction: float) -> tuple[int, int]:
    """Training and validation labels of a class with `n` images.

    Their sum is at most `fraction * n`, and a tenth of it (at least one) is for validation.
    """
    total = math.floor(fraction * n + 1e-9)
    val = max(1, round(total / HELD_OUT)) if total else 0
    return total - val, val


def too_small(split: Split, class_names: tuple[str, ...], fraction: float) -> str | None:
    """Why a fraction leaves a class without a training and a validation label; None if it does not.

    Returns:
        A clause with the class, its images and the smallest fraction possible.
    """
    sizes = np.bincount(split.labels[split.labels >= 0], minlength=len(class_names))
    fewest = int(sizes.argmin())
    if min(counts(int(sizes[fewest]), fraction)) >= 1:
        return None
    smallest = math.ceil(2 / int(sizes[fewest]) * 1e6 - 1e-6) / 1e6
    return (
        f"leaves {class_names[fewest]!r} ({sizes[fewest]} images) without a training and a "
        f"validation label; the smallest fraction possible here is {smallest:g}"
    )


def subset(split: Split, class_names: tuple[str, ...], fraction: float, seed: int) -> Subset:
    """The labelled rows of `split` at `fraction`.

    Raises:
        DataError: fewer than one training and one validation label for some class; the message
            says the smallest fraction possible.
    """
    if not 0 < fraction <= 1:
        raise DataError(f"--fraction {fraction:g}: allowed are values above 0 and up to 1")
    if why := too_small(split, class_names, fraction):
        raise DataError(f"--fraction {fraction:g} {why}")
    train, val, pool = (np.zeros(len(split), bool) for _ in range(3))
    for label in range(len(class_names)):
        rows = np.flatnonzero(split.labels == label)
        order = np.random.default_rng([seed, label]).permutation(rows)
        n_pool = counts(len(rows), 1.0)[1]
        n_train, n_val = counts(len(rows), fraction)
        pool[order[:n_pool]] = True
        val[order[:n_val]] = True
        train[order[n_pool : n_pool + n_train]] = True
    copied = _copied(split, train, pool)
    train &= ~copied
    rows_train, rows_val, rows_pool = (
        np.flatnonzero(these).astype(np.int32) for these in (train, val, pool)
    )
    return Subset(
        fraction=fraction,
        train=rows_train,
        val=rows_val,
        val_pool=rows_pool,
        hash=rows_hash(split, rows_train, rows_val),
        copied=int(copied.sum()),
    )


def _copied(
    split: Split, train: NDArray[np.bool_], held_out: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Training rows with the pixels of a held-out one, which would leak it, [N].

    Except those of a class that would have no other training image.
    """
    group = checks.groups(split.digests)
    known = np.zeros(len(split), bool)
    known[group[held_out]] = True
    copied: NDArray[np.bool_] = train & known[group]
    for label in np.unique(split.labels[copied]):
        rows = train & (split.labels == label)
        if copied[rows].all():
            copied[rows] = False
    return copied


def rows_hash(split: Split, *labelled: Index) -> str:
    """SHA-256 over the digests of rows, for training and for validation, hexadecimal."""
    digest = hashlib.sha256()
    for rows in labelled:
        digest.update(len(rows).to_bytes(8, "big"))
        for _, part in split.digests.take(rows).parts():
            digest.update(part.tobytes())
    return digest.hexdigest()


def spread(rows: Index, most: int) -> Index:
    """Returns at most `most` of the rows, evenly spaced."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
