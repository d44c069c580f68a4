"""A data set that is opened but not yet decoded, and what every kind of source needs."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labelcurve.bundle import files
from labelcurve.bundle.errors import DataError, UnreadableImage
from labelcurve.bundle.text import shown as shown

T = TypeVar("T")

Say = Callable[[str], None]
"""Receives what a person should know of the data, line by line."""

Index = NDArray[np.integer[Any]]
"""Numbers of rows or classes, [N]; int32 where there is one for each image."""

UNLABELLED = -1
"""The label of an image without one."""

REPEATED = "unlabelled images read already"
"""Why a second way to the same file is left out."""


@dataclass(frozen=True)
class Rows:
    """One split before decoding."""

    labels: Index
    """[N], indices into the source's `class_names`; `UNLABELLED` where an image has no label."""
    read: Callable[[int], bytes]
    """Returns the file bytes of a row."""
    where: Callable[[int], str]
    """Returns where a row comes from, for messages: a path, or a file and a row number."""
    starts: NDArray[np.int64] | None = None
    """First rows of the groups that are read at once; None where each row is read alone."""
    paths: Sequence[Path] | None = None
    """The file of each row, where each is one."""


@dataclass(frozen=True)
class LeftOut:
    """Something in the data that is not used."""

    path: str
    reason: str
    """Worded to follow a number: `thumbnails (@eaDir)`."""
    count: int = 1


@dataclass(frozen=True)
class Source:
    """A data set before decoding."""

    name: str
    fingerprint: str
    """Changes when a file's content, name or class changes."""
    class_names: tuple[str, ...]
    size: int | None
    """Natural side of the images in pixels, where the kind of source sets it."""
    splits: dict[str, Rows]
    """`train`, and `test` where the source has one."""
    changed: Callable[[], list[Path]] = list
    """Returns the files that differ from when the fingerprint was taken."""
    left_out: tuple[LeftOut, ...] = ()
    external: tuple[Path, ...] = ()
    """Image files that Parquet files refer to without containing them."""


def image_files(paths: Sequence[Path], labels: Index) -> Rows:
    """Rows that are a file each."""
    files = _Files(paths)
    return Rows(labels.astype(np.int32, copy=False), files.read, files.where, paths=paths)


def joined(first: Rows, second: Rows) -> Rows:
    """The rows of two sources, one after the other."""
    n = len(first.labels)
    starts = None
    if first.starts is not None or second.starts is not None:
        groups = (
            np.arange(len(r.labels)) if r.starts is None else r.starts for r in (first, second)
        )
        before, after = groups
        starts = np.concatenate([before, after + n]).astype(np.int64)
    read = partial(_either, first.read, second.read, n)
    where = partial(_either, first.where, second.where, n)
    return Rows(np.concatenate([first.labels, second.labels]), read, where, starts)


def _either(first: Callable[[int], T], second: Callable[[int], T], n: int, i: int) -> T:
    return first(i) if i < n else second(i - n)


@dataclass(frozen=True)
class _Files:
    paths: Sequence[Path]

    def read(self, i: int) -> bytes:
        try:
            return files.read(self.paths[i])
        except OSError as error:
            raise UnreadableImage(f"the file cannot be read: {error.strerror}") from error

    def where(self, i: int) -> str:
        return shown(self.paths[i])


def of_files(
    name: str,
    class_names: tuple[str, ...],
    files: dict[str, list[tuple[Path, int]]],
    left_out: Sequence[LeftOut],
    *,
    below: Path | None = None,
    table: Path | None = None,
) -> Source:
    """A source whose images are files, with their labels, by split.

    Args:
        below: folder that their paths are relative to, where they are.
        table: that names them.
    """
    paths = [path for pairs in files.values() for path, _ in pairs]
    changed = watch([*([table] if table else []), *paths])
    hashes = dict(zip(paths, hash_images(paths), strict=True))
    listing = [
        f"{split}/{label}/{shown(path.relative_to(below) if below else path)} {hashes[path]}"
        for split, pairs in files.items()
        for path, label in pairs
    ]
    return Source(
        name=name,
        fingerprint=hashlib.sha256("\n".join(listing).encode()).hexdigest(),
        class_names=class_names,
        size=None,
        splits={
            split: image_files([path for path, _ in pairs], np.array([n for _, n in pairs]))
            for split, pairs in files.items()
        },
        changed=changed,
        left_out=tuple(left_out),
    )


def resolved(paths: Sequence[Path]) -> list[str]:
    """The files that the paths lead to; each folder is resolved once, since there may be many."""
    folder = cache(os.path.realpath)
    return [
        os.path.realpath(path) if path.is_symlink() else f"{folder(path.parent)}/{path.name}"
        for path in paths
    ]


def hash_file(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def hash_images(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file, or `unreadable`: decoding reports and counts those."""

    def one(path: Path) -> str:
        try:
            # Of a regular file: reading a pipe might block forever.
            return hash_file(path) if path.is_file() else "unreadable"
        except (DataError, OSError):
            return "unreadable"

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, paths))


def watch(paths: Sequence[Path]) -> Callable[[], list[Path]]:
    """Remembers sizes and times of files now; returns a function that lists those that differ."""

    def stamp(path: Path) -> tuple[int, int] | None:
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns

    before = [stamp(path) for path in paths]

    def changed() -> list[Path]:
        return [path for path, known in zip(paths, before, strict=True) if stamp(path) != known]

    return changed


def at_home(given: str | Path) -> Path:
    """A path with `~` replaced by the home folder; as it is where that user has none."""
    path = Path(given)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def name_of(path: Path) -> str:
    """A data set's name, from its folder's."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name).strip("-._")
    return name[:200] or "images"  # a bundle's name has more after it


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels, uint8 [H, W] or [H, W, 3], as the bytes of a PNG file."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
