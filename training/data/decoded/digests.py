"""SHA-256 digests of images: they identify an image, and rows are sorted by them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelcurve.bundle.errors import DataError
from labelcurve.training.data.source import Index

AT_ONCE = 8_192
"""Digests that are in memory at a time while all are read."""


@dataclass(frozen=True)
class Digests:
    """SHA-256 of images, 32 bytes each, indexed like an array but left in their file."""

    file: Path
    """A `.npy` file of dtype V32."""
    n: int
    """Digests in the file."""
    rows: Index | None = None
    """The rows of the file that these are; None means all."""

    def take(self, rows: Index) -> Digests:
        """Returns some of them."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def joined(self, others: Digests) -> Digests:
        """Returns these and others of the same file, one after the other."""
        assert self.file == others.file
        every = np.arange(self.n)
        both = [every if part.rows is None else part.rows for part in (self, others)]
        return replace(self, rows=np.concatenate(both))

    def parts(self) -> Iterator[tuple[int, NDArray[np.void]]]:
        """Yields all of them in parts, each with the index of its first one."""
        for first in range(0, len(self), AT_ONCE):
            yield first, self[first : first + AT_ONCE]

    def check(self) -> None:
        """Checks that they are in order, as those of sorted images are.

        Raises:
            ValueError: they are not in order.
        """
        last = np.uint64(1)  # no image has a digest that begins with eight zeros
        for _, part in self.parts():
            first = word(part, 0)
            if first[0] < last or (first[1:] < first[:-1]).any():
                raise ValueError(f"{self.file.name} is out of order")
            last = first[-1]

    def __len__(self) -> int:
        return self.n if self.rows is None else len(self.rows)

    def __getitem__(self, wanted: slice | Index) -> NDArray[np.void]:
        try:
            # Mapped for this call alone: pages once read count as memory while they are mapped.
            whole: NDArray[np.void] = np.load(self.file, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.file} cannot be read any more ({error}): run the same command again"
            ) from error
        return np.array(whole[wanted if self.rows is None else self.rows[wanted]])

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> NDArray[np.void]:
        return self[:]


def of_image(image: NDArray[np.uint8]) -> bytes:
    """The SHA-256 of an image, uint8 [H, W, 3], before it is resized."""
    total = hashlib.sha256(np.array(image.shape, np.int64).tobytes())
    total.update(np.ascontiguousarray(image).data)
    return total.digest()


def in_file(path: Path, n: int) -> Digests:
    """The digests in a `.npy` file.

    Raises:
        OSError, ValueError: no such file, or another kind or number.
    """
    found = np.load(path, mmap_mode="r")
    if found.dtype != np.dtype("V32") or found.shape != (n,):
        raise ValueError(f"{path.name} holds {found.dtype} {found.shape}")
    return Digests(path, n)


def sort(digests: NDArray[np.void], labels: Index) -> NDArray[np.int64]:
    """Sorts digests, and equal ones by label; stable. Returns the order, [N].

    Compares the first eight bytes, and the rest only where they are equal, to save memory.
    """
    first = word(digests, 0)
    order = first.argsort(kind="stable")
    first = first[order]
    same = np.flatnonzero(first[1:] == first[:-1])
    places = np.union1d(same, same + 1)
    rows = order[places]
    keys = [word(digests[rows], number) for number in (3, 2, 1, 0)]
    order[places] = rows[np.lexsort((labels[rows], *keys))]
    return order


def word(digests: NDArray[np.void], number: int) -> NDArray[np.uint64]:
    """Eight bytes of each digest, as numbers that sort alike: `number` 0 for the first eight."""
    words = np.ascontiguousarray(digests).view(">u8").reshape(-1, 4)
    return words[:, number].astype(np.uint64)
