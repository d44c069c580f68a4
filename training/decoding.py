"""Every image of a source decoded once, into files that need not fit into memory."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle import preprocess
from bundle.errors import ImageError
from training.progress import Bar, duration
from training.source import Rows, Say
from training.stored import in_order

CHUNK = 16
"""Images that a thread takes at a time."""

BUCKETS = (4, 128)
"""Files that are open at a time; beside what is sorted already, one of them is on the disk."""

AT_ONCE = 65_536
"""Digests that are copied at a time."""

EVERY = 2.0
"""Seconds between two lines of progress, where there is no terminal."""


def decode(
    folder: Path,
    split: str,
    rows: Rows,
    size: int,
    name: str,
    say: Say,
    *,
    memory: int,
    keep: bool = True,
) -> list[tuple[int, str]]:
    """Decodes a split, in threads, and writes it in the order of its digests.

    That is the order of SHA-256, the same whatever the names, the folders or the file format, and
    as good as random. Rows are distributed over files by the first digits of their digest, then
    each of these is sorted in memory.

    Args:
        folder: for `SPLIT-images.npy`, `SPLIT-digests.npy` and `SPLIT-rows.npy`.
        split: its name.
        rows: to read.
        size: side of the images in pixels.
        name: of the data set, for messages.
        say: receives progress, where there is no terminal for a bar.
        memory: bytes that images may take, at most.
        keep: write the images; else their digests and order alone.

    Returns:
        Rows that cannot be read, and why.

    Raises:
        OSError: the files cannot be written.
    """
    n = len(rows.labels)
    bytes_each = 3 * size * size
    least, most = BUCKETS
    count = min(most, max(least, -(-4 * n * bytes_each // max(1, memory))))
    digests = np.zeros(n, "V32")
    failures: list[tuple[int, str]] = []
    bucket_of = np.full(n, -1, np.int16)  # -1: unreadable
    with ExitStack() as stack:
        paths = [folder / f"{split}-{number}.part" for number in range(count if keep else 0)]
        parts = [stack.enter_context(path.open("wb")) for path in paths]
        for row, digest, pixels in _decoded(rows, size, f"{name}: {split}", say):
            if isinstance(pixels, str):
                failures.append((row, pixels))
                continue
            bucket = int.from_bytes(digest[:2]) * count >> 16
            digests[row], bucket_of[row] = np.void(digest), bucket
            if keep:
                parts[bucket].write(pixels.data)
    order = np.empty(n - len(failures), np.int64)
    with ExitStack() as stack:
        if keep:
            out = stack.enter_context((folder / f"{split}-images.npy").open("wb"))
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(order), size, size, 3)}
            np.lib.format.write_array_header_1_0(out, header)
        done, start = 0, time.monotonic()
        bar = stack.enter_context(Bar(f"{name}: {split}, sorting"))
        for bucket in range(count):
            there = np.flatnonzero(bucket_of == bucket)
            places = sort(digests[there], rows.labels[there])
            order[done : done + len(there)] = there[places]
            done += len(there)
            if keep:
                pixels = np.fromfile(paths[bucket], np.uint8).reshape(-1, bytes_each)
                for place in places.tolist():
                    out.write(pixels[place].data)
                paths[bucket].unlink()
            left = (time.monotonic() - start) * (count / (bucket + 1) - 1)
            bar.update((bucket + 1) / count, left)
    with (folder / f"{split}-digests.npy").open("wb") as out:
        header = {"descr": digests.dtype.str, "fortran_order": False, "shape": order.shape}
        np.lib.format.write_array_header_1_0(out, header)
        for first in range(0, len(order), AT_ONCE):
            out.write(digests[order[first : first + AT_ONCE]].tobytes())
    np.save(folder / f"{split}-rows.npy", order)
    return failures


def sort(digests: NDArray[np.void], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order of digests, those of the same pixels by label; stable.

    By their first eight bytes, which differ unless the pixels are the same, so that it takes little
    memory beside the digests themselves.
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
    """Eight of the bytes of each digest, as a number of the same order."""
    words = np.ascontiguousarray(digests).view(">u8").reshape(-1, 4)
    return words[:, number].astype(np.uint64)


def _decoded(
    rows: Rows, size: int, title: str, say: Say
) -> Iterator[tuple[int, bytes, NDArray[np.uint8] | str]]:
    """Each row with digest and pixels, or with the reason why it cannot be read; in their order."""

    def one(row: int) -> tuple[int, bytes, NDArray[np.uint8] | str]:
        try:
            image = preprocess.decode(rows.read(row), size=size)
        except ImageError as error:
            return row, b"", str(error)
        pixels = np.asarray(image)
        digest = hashlib.sha256(np.array(pixels.shape, np.int64).tobytes())
        digest.update(np.ascontiguousarray(pixels).data)
        return row, digest.digest(), np.ascontiguousarray(preprocess.resize(image, size))

    def several(chunk: range) -> list[tuple[int, bytes, NDArray[np.uint8] | str]]:
        return [one(row) for row in chunk]

    n = len(rows.labels)
    start = told = time.monotonic()
    chunks = (range(first, min(n, first + CHUNK)) for first in range(0, n, CHUNK))
    done = 0
    with Bar(f"{title}, decoding") as bar:
        for found in in_order(several, chunks):
            yield from found
            done += len(found)
            now = time.monotonic()
            left = (now - start) / done * (n - done)
            bar.update(done / n, left)
            if not bar.shown and now - told > EVERY and done < n:
                told = now
                rate = done / (now - start)
                say(
                    f"{title}: decoded {done:,} of {n:,} images, {rate:,.0f} a second, "
                    f"{duration(left)} left"
                )
