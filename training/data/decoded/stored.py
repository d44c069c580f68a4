"""Images that stay outside memory, and the order in which they are read."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from labelcurve.bundle import preprocess
from labelcurve.bundle.errors import DataError, ImageError
from labelcurve.bundle.machine import cores
from labelcurve.training.data.source import Index, Rows

Item = TypeVar("Item")
Result = TypeVar("Result")

BLOCK_BYTES = 4 * 2**20
"""Bytes of a file that are read at once."""

AT_ONCE = 65_536
"""Rows of a random order that are computed at a time."""

TAKEN_SHARE = 0.25
"""Share of the memory for images; rows that take less are read into it and stay there."""


class Images(Protocol):
    """uint8 [N, H, W, 3]: an array, or `Stored`, which is indexed like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, H, W, 3]"""

    @property
    def nbytes(self) -> int:
        """Bytes of all of them, decoded."""

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """uint8"""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def __getitem__(self, wanted: Any, /) -> Any: ...

    def __array__(self) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Stored:
    """Images in a file or still encoded, uint8 [N, size, size, 3]; indexed like an array."""

    fetch: Callable[[Index], NDArray[np.uint8]]
    """Rows of the whole, in the order asked for, [M, size, size, 3]."""
    blocks: Callable[[Index], Index]
    """Maps rows of the whole array to the numbers of their blocks."""
    whole: int
    size: int
    memory: int
    """Bytes that images may take."""
    place: str
    """Where they are read from, in words."""
    rows: Index | None = None
    """[N] The rows of the whole that these images are; None means all."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As of an array."""
        return len(self), self.size, self.size, 3

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """As of an array."""
        return np.dtype(np.uint8)

    @property
    def nbytes(self) -> int:
        """As of an array."""
        return len(self) * 3 * self.size**2

    def take(self, rows: Index) -> Images:
        """Returns some of them, in memory where they are few."""
        part = replace(self, rows=rows if self.rows is None else self.rows[rows])
        return part[:] if self.keeps(len(part)) else part

    def keeps(self, n: int) -> bool:
        """Returns whether `take` reads so many of them into memory."""
        return n * 3 * self.size**2 <= TAKEN_SHARE * self.memory

    def within(self, wanted: Any) -> Any:
        """Maps an index of these images to rows of the whole."""
        if self.rows is not None:
            return self.rows[wanted]
        if isinstance(wanted, slice):
            return np.arange(*wanted.indices(self.whole), dtype=np.int32)
        if np.ndim(wanted) == 0:
            return range(self.whole)[wanted]
        return np.arange(self.whole, dtype=np.int32)[wanted]

    def __len__(self) -> int:
        return self.whole if self.rows is None else len(self.rows)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, wanted: Any, /) -> NDArray[np.uint8]:
        found = self.within(wanted)
        if np.ndim(found) == 0:
            one: NDArray[np.uint8] = self.fetch(np.array([found]))[0]
            return one
        return self.fetch(found)

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> NDArray[np.uint8]:
        return np.asarray(self[:], dtype)


def take(images: Images, rows: Index) -> Images:
    """Returns some of the images, in the given order."""
    if isinstance(images, Stored):
        return images.take(rows)
    found: Images = images[rows]
    return found


def joined(first: Images, second: Images) -> Images:
    """Returns the images of both, one after the other."""
    if not isinstance(first, Stored) and not isinstance(second, Stored):
        both: Images = np.concatenate([np.asarray(first), np.asarray(second)])
        return both
    stored = first if isinstance(first, Stored) else second
    assert isinstance(stored, Stored)
    parts = _Joined(first, second)
    n = len(first) + len(second)
    return replace(stored, fetch=parts.fetch, blocks=parts.blocks, whole=n, rows=None)


@dataclass(frozen=True)
class _Joined:
    first: Images
    second: Images

    def fetch(self, rows: Index) -> NDArray[np.uint8]:
        n = len(self.first)
        out = np.empty((len(rows), *self.first.shape[1:]), np.uint8)
        early = rows < n
        out[early] = self.first[rows[early]]
        out[~early] = self.second[rows[~early] - n]
        return out

    def blocks(self, rows: Index) -> Index:
        n = len(self.first)
        early = rows < n
        out = np.empty(len(rows), np.int64)
        out[early] = 2 * _blocks(self.first, rows[early])
        out[~early] = 2 * _blocks(self.second, rows[~early] - n) + 1
        return out


def _blocks(images: Images, rows: Index) -> Index:
    """The numbers of their blocks; images in memory are one."""
    if isinstance(images, Stored):
        return images.blocks(images.within(rows))
    return np.zeros(len(rows), np.int64)


def in_file(path: Path, memory: int) -> Stored:
    """The images in a `.npy` file, read by blocks and never mapped.

    Raises:
        OSError, ValueError, EOFError: no such file, or another kind.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{path.name} has format {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        begin = file.tell()
    n, size = shape[:2]
    if dtype != np.uint8 or shape != (n, size, size, 3):
        raise ValueError(f"{path.name} holds {dtype} {shape}")
    if path.stat().st_size != begin + n * 3 * size * size:
        raise EOFError(f"{path.name} is cut off")
    file_of = _File(path, begin, size, max(1, BLOCK_BYTES // (3 * size * size)))
    return Stored(
        fetch=file_of.fetch,
        blocks=file_of.blocks,
        whole=n,
        size=size,
        memory=memory,
        place="the cache",
    )


@dataclass(frozen=True)
class _File:
    path: Path
    begin: int
    """Offset of the first image, in bytes."""
    size: int
    per_block: int

    def blocks(self, rows: Index) -> Index:
        return rows // self.per_block

    def fetch(self, rows: Index) -> NDArray[np.uint8]:
        shape = self.size, self.size, 3
        each = math.prod(shape)
        out = np.empty((len(rows), *shape), np.uint8)
        order = rows.argsort(kind="stable")
        ascending = rows[order]
        # What lies in one block is read at once, with the gaps between.
        cuts = np.flatnonzero(np.diff(self.blocks(ascending))) + 1
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be read any more ({error.strerror}): give the same command "
                "again. With several machines, all must see --cache under the same path"
            ) from error
        try:
            for part, where in zip(np.split(ascending, cuts), np.split(order, cuts), strict=True):
                if not len(part):
                    continue
                first, count = int(part[0]), int(part[-1] - part[0]) + 1
                found = self._read(descriptor, self.begin + first * each, count * each)
                out[where] = found.reshape(count, *shape)[part - first]
        finally:
            os.close(descriptor)
        return out

    def _read(self, descriptor: int, offset: int, count: int) -> NDArray[np.uint8]:
        buffer = np.empty(count, np.uint8)
        done = 0
        while done < count:
            got = os.preadv(descriptor, [buffer[done:].data], offset + done)
            if not got:
                raise DataError(
                    f"{self.path} was cut off while it was read: run the same command again"
                )
            done += got
        return buffer


def encoded(source: Rows, order: Index, size: int, memory: int) -> Stored:
    """Images that are decoded whenever they are read, by threads.

    Args:
        order: [N] the row of the source that each is.
        size: side in pixels.
        memory: bytes that images may take.
    """
    unlabelled = replace(source, labels=source.labels[:0].copy())
    files = _Encoded(unlabelled, order.astype(np.int32, copy=False), size)
    return Stored(
        fetch=files.fetch,
        blocks=files.blocks,
        whole=len(order),
        size=size,
        memory=memory,
        place="their files",
    )


@dataclass(frozen=True)
class _Encoded:
    source: Rows
    order: NDArray[np.int32]
    size: int

    def blocks(self, rows: Index) -> Index:
        wanted = self.order[rows]
        if self.source.starts is None:
            return wanted
        return np.searchsorted(self.source.starts, wanted, side="right") - 1

    def fetch(self, rows: Index) -> NDArray[np.uint8]:
        out = np.empty((len(rows), self.size, self.size, 3), np.uint8)
        wanted = self.order[rows]
        # In the order of the source: what is read at once is read once.
        places = wanted.argsort(kind="stable")
        found = in_order(self._one, wanted[places].tolist())
        for place, pixels in zip(places.tolist(), found, strict=True):
            out[place] = pixels
        return out

    def _one(self, row: int) -> NDArray[np.uint8]:
        try:
            return preprocess.prepare(self.source.read(row), self.size)
        except ImageError as error:
            raise DataError(
                f"{self.source.where(row)} changed while it was in use: {error}. Put it back and "
                "run the same command again"
            ) from error


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], ahead: int = 4
) -> Iterator[Result]:
    """Maps in a thread for each core, at most `ahead` items a thread ahead, and in order."""
    workers = cores()
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > ahead * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def by_blocks(images: Stored, random: np.random.Generator) -> NDArray[np.int32]:
    """The rows in a random order of their blocks: neighbours are read at once. int32 [N]"""
    parts = range(0, len(images), AT_ONCE)

    def blocks(first: int) -> Index:
        return images.blocks(images.within(slice(first, first + AT_ONCE)))

    counts = np.zeros(1 + max((int(blocks(first).max()) for first in parts), default=-1), np.int64)
    place = random.permutation(len(counts))
    for first in parts:
        counts += np.bincount(place[blocks(first)], minlength=len(counts))
    # A stable sort by counting, some rows at a time, in no more memory than its result.
    order = np.empty(len(images), np.int32)
    begin = counts.cumsum() - counts
    for first in parts:
        places = place[blocks(first)]
        rows = places.argsort(kind="stable")
        places = places[rows]
        order[begin[places] + np.arange(len(rows)) - places.searchsorted(places)] = first + rows
        begin += np.bincount(places, minlength=len(begin))
    return order
