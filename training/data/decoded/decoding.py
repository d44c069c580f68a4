"""Decodes every image of a source once, into files that need not fit into memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from labelcurve.bundle import preprocess
from labelcurve.bundle.errors import ImageError
from labelcurve.bundle.text import duration
from labelcurve.training.data.decoded.digests import of_image, sort
from labelcurve.training.data.decoded.stored import in_order
from labelcurve.training.data.source import Rows, Say
from labelcurve.training.runtime.console import Bar

CHUNK = 16
"""Images that a thread decodes at a time."""

BUCKETS = (4, 128)
"""Least and largest number of files that rows are distributed over before they are sorted."""

EVERY = 2.0
"""Seconds between lines of progress without a terminal."""


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

    The order of SHA-256 is the same whatever the names, folders and file format, and effectively
    random. Rows are distributed over files by the first digits of their digest, then
    each of these is sorted in memory.

    Args:
        folder: for `SPLIT-images.npy`, `SPLIT-digests.npy` and `SPLIT-rows.npy`.
        size: side of the images in pixels.
        name: of the data set, for messages.
        say: receives progress if there is no terminal for a bar.
        memory: bytes that images may take, at most.
        keep: write the images; else their digests and order alone.

    Returns:
        Rows that cannot be read, each with the reason.

    Raises:
        OSError: the files cannot be written.
    """
    n = len(rows.labels)
    shape = (size, size, 3) if keep else (0,)
    record = np.dtype([("row", "<i8"), ("digest", "V32"), ("pixels", "u1", shape)])
    least, most = BUCKETS
    count = min(most, max(least, -(-4 * n * record.itemsize // max(1, memory))))
    failures: list[tuple[int, str]] = []
    with ExitStack() as stack:
        paths = [folder / f"{split}-{number}.part" for number in range(count)]
        parts = [stack.enter_context(path.open("wb")) for path in paths]
        for row, digest, pixels in _decoded(rows, size, f"{name}: {split}", say):
            if isinstance(pixels, str):
                failures.append((row, pixels))
                continue
            part = parts[int.from_bytes(digest[:2]) * count >> 16]
            part.write(row.to_bytes(8, "little") + digest)
            if keep:
                part.write(pixels.data)
    there = n - len(failures)
    with ExitStack() as stack:

        def begin(what: str, kind: str, shape: tuple[int, ...]) -> BinaryIO:
            file = stack.enter_context((folder / f"{split}-{what}.npy").open("wb"))
            header = {"descr": kind, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            return file

        order, digests = begin("rows", "<i8", (there,)), begin("digests", "|V32", (there,))
        images = begin("images", "|u1", (there, size, size, 3)) if keep else None
        bar = stack.enter_context(Bar(f"{name}: {split}, sorting"))
        # One for all files: an allocator keeps some of many that differ a little in size.
        buffer = np.empty(max(path.stat().st_size for path in paths), np.uint8)
        for bucket, path in enumerate(paths):
            with path.open("rb") as file:
                found = buffer[: file.readinto(buffer.data)].view(record)
            path.unlink()
            places = sort(found["digest"], rows.labels[found["row"]])
            order.write(found["row"][places].tobytes())
            digests.write(found["digest"][places].tobytes())
            if images is not None:
                pixels = found["pixels"]
                for place in places.tolist():
                    images.write(pixels[place].data)
            bar.update((bucket + 1) / count)
    return failures


def _decoded(
    rows: Rows, size: int, title: str, say: Say
) -> Iterator[tuple[int, bytes, NDArray[np.uint8] | str]]:
    """Yields each row in order, with digest and pixels, or with why it cannot be read."""

    def one(row: int) -> tuple[int, bytes, NDArray[np.uint8] | str]:
        try:
            image = preprocess.decode(rows.read(row), size=size)
        except ImageError as error:
            return row, b"", str(error)
        return (
            row,
            of_image(np.asarray(image)),
            np.ascontiguousarray(preprocess.resize(image, size)),
        )

    def several(chunk: range) -> list[tuple[int, bytes, NDArray[np.uint8] | str]]:
        return [one(row) for row in chunk]

    n = len(rows.labels)
    start = reported = time.monotonic()
    chunks = (range(first, min(n, first + CHUNK)) for first in range(0, n, CHUNK))
    done = 0
    with Bar(f"{title}, decoding") as bar:
        for found in in_order(several, chunks):
            yield from found
            done += len(found)
            now = time.monotonic()
            left = (now - start) / done * (n - done)
            bar.update(done / n, left)
            if not bar.shown and now - reported > EVERY and done < n:
                reported = now
                rate = done / (now - start)
                say(
                    f"{title}: decoded {done:,} of {n:,} images, {rate:,.0f} a second, "
                    f"{duration(left)} left"
                )
