"""A data set as training, evaluation and benchmarks see it: rows of pixels with labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Split:
    """Rows in an order that depends on the images alone, not on file names or formats."""

    images: NDArray[np.uint8]
    """[N, size, size, 3], as `bundle.preprocess.prepare` gives them."""
    labels: NDArray[np.int64]
    """[N], indices into the data set's `class_names`."""
    digests: NDArray[np.void]
    """[N] SHA-256 of the original pixels, 32 bytes each."""
    read: Callable[[int], bytes]
    """The original file bytes of a row."""


@dataclass(frozen=True)
class Data:
    """A data set in memory."""

    name: str
    """Short: `cifar10`, `digits`, or the folder's name."""
    hash: str
    class_names: tuple[str, ...]
    size: int
    train: Split
    test: Split


def load(
    source: str,
    *,
    size: int | None = None,
    cache: Path | None = None,
    skip_unreadable: bool = False,
    say: Callable[[str], None] = print,
) -> Data:
    """Reads `digits`, `cifar10`, a folder of class folders or a folder of Parquet files.

    Args:
        source: the value of `--data`.
        size: side of the images in pixels; None takes the natural one of the source.
        cache: folder of decoded pixels; None takes the user's cache folder.
        skip_unreadable: leave unreadable images out and count them instead of raising.
        say: receives progress and findings, line by line.

    Raises:
        DataError: the source cannot be used as it is.
    """
    raise NotImplementedError
