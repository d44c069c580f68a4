"""A data set that is opened but not yet decoded, and what every kind of source needs."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bundle.errors import DataError

Say = Callable[[str], None]

Index = NDArray[np.integer[Any]]
"""Numbers of rows or classes, [N]; int32 where there is one for each image."""


@dataclass(frozen=True)
class Rows:
    """One split before decoding."""

    labels: Index
    """[N], indices into the source's `class_names`."""
    read: Callable[[int], bytes]
    """File bytes of a row."""
    where: Callable[[int], str]
    """Where a row comes from, for messages: a path, or a file and a row number."""
    starts: NDArray[np.int64] | None = None
    """First rows of the groups that are read at once; None where each row is read alone."""


@dataclass(frozen=True)
class Source:
    """A data set before decoding."""

    name: str
    fingerprint: str
    """Changes when a file's content, name or class changes."""
    class_names: tuple[str, ...]
    size: int
    """Natural side of the images in pixels."""
    splits: dict[str, Rows]
    """`train`, and `test` where the source has one."""
    changed: Callable[[], list[Path]] = list
    """Files that are not any more as they were when the fingerprint was taken."""


def entries(folder: Path) -> list[tuple[Path, bool]]:
    """What a folder holds, without what is hidden, in order; True marks folders.

    Raises:
        DataError: it cannot be read.
    """
    try:
        found = [(Path(entry.path), entry.is_dir()) for entry in os.scandir(folder)]
    except OSError as error:
        unread(error)
    return sorted(pair for pair in found if not pair[0].name.startswith((".", "__MACOSX")))


def unread(error: OSError) -> NoReturn:
    """Raises the DataError of a folder that cannot be read."""
    raise DataError(
        f"{shown(Path(error.filename))} cannot be read: {error.strerror} for user {os.geteuid()}. "
        "Change its mode, or run as its owner (docker: --user)"
    ) from error


def shown(path: Path) -> str:
    """A path as text that can be printed and hashed: names need not be UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


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


def watch(paths: Sequence[Path]) -> Callable[[], list[Path]]:
    """Remembers sizes and times of files now; tells which of them differ later."""

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


def name_of(path: Path) -> str:
    """A data set's name, from its folder's."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name).strip("-._")
    return name[:200] or "images"  # a bundle's name has more after it


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels, uint8 [H, W] or [H, W, 3], as the bytes of a PNG file."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
