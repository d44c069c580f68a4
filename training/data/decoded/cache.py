"""The cache of decoded pixels: filled once for each data set and size, and cleared on demand."""

from __future__ import annotations

import atexit
import hashlib
import json
import math
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from labelcurve.bundle import preprocess
from labelcurve.bundle.errors import DataError, LabelcurveError
from labelcurve.bundle.text import counted
from labelcurve.training.data import checks
from labelcurve.training.data.decoded.decoding import decode
from labelcurve.training.data.source import Say, Source, shown
from labelcurve.training.runtime import lock

FORMAT = 2
"""Version of the cached files: part of their key."""

DISK = 1.3
"""Times the bytes of the decoded images that must be free to write and sort them."""

KEY = 20
"""Digits of a folder's name in the cache."""

_held: dict[Path, int] = {}
"""Folders of the cache that this process has read from, each with its descriptor of `lock.use`."""


def default_cache() -> Path:
    """The user's cache folder, `~/.cache/labelcurve` on Linux."""
    import platformdirs

    return platformdirs.user_cache_path("labelcurve", appauthor=False)


def key_of(source: Source, size: int) -> str:
    """The hash of what decoded pixels depend on: files, classes, size, preprocessing and format."""
    key = f"{FORMAT} {preprocess.VERSION} {size} {source.fingerprint} {source.class_names}"
    return hashlib.sha256(key.encode()).hexdigest()[:KEY]


def n_bytes(source: Source, size: int) -> int:
    """Bytes of all images, decoded."""
    return sum(len(rows.labels) for rows in source.splits.values()) * 3 * size * size


def at_hand(cache: Path, source: Source, size: int, memory: int, say: Say) -> Path:
    """The folder of the decoded images, which are decoded if need be.

    As long as this process lives, no other clears them.

    Args:
        size: side of the images in pixels.
        memory: bytes that decoded images may take.

    Raises:
        DataError: they cannot be decoded, written or read.
    """
    folder = cache / "pixels" / key_of(source, size)
    while True:
        there = folder
        if not (folder / "meta.json").exists():
            there = _decode_into(folder, source, size, memory, say)
        try:
            descriptor = lock.use(there / "meta.json")
        except OSError as error:
            raise damaged(there, error) from error
        if descriptor is not None:
            if there in _held:
                os.close(_held[there])
            _held[there] = descriptor
            return there


def unreadable(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """The rows of each split that could not be decoded, and why.

    Raises:
        OSError, ValueError, LookupError, TypeError: the file is damaged.
    """
    found: Any = json.loads((folder / "meta.json").read_text())["unreadable"]
    return {split: [(int(row), str(why)) for row, why in rows] for split, rows in found.items()}


def damaged(folder: Path, error: Exception) -> DataError:
    """The error of a folder of the cache that cannot be read."""
    return DataError(
        f"the cached pixels in {folder} are damaged ({str(error).partition('. ')[0]}): decode them "
        "again with --clear-cache"
    )


def clear(cache: Path | None = None, say: Say = print, before: float = math.inf) -> None:
    """Removes the cached pixels that no other process uses; downloads stay.

    Args:
        cache: folder; None takes `default_cache()`.
        say: receives what stays.
        before: seconds since the epoch; what was cached later stays.
    """
    pixels = (cache or default_cache()) / "pixels"
    while _held:
        os.close(_held.popitem()[1])
    found = sorted(pixels.iterdir()) if pixels.is_dir() else []
    for name in sorted({entry.name.removeprefix(".")[:KEY] for entry in found}):
        folder = pixels / name
        with suppress(OSError):
            if folder.stat().st_mtime >= before:
                continue
        try:
            with (
                lock.hold(pixels / f".{name}.lock", "{holder} is decoding it", say=say),
                lock.unused(folder / "meta.json") as unused,
            ):
                if not unused:
                    raise LabelcurveError("another process reads from it")
                for entry in (folder, *pixels.glob(f".{name}-*")):
                    shutil.rmtree(entry, ignore_errors=True)
        except (LabelcurveError, OSError) as error:
            say(f"--clear-cache leaves {folder} ({_name(folder)}) where it is: {error}")


def _name(folder: Path) -> str:
    """The name of the data set whose pixels are cached there."""
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads((folder / "meta.json").read_text())["name"])
    return "unknown"


def _decode_into(folder: Path, source: Source, size: int, memory: int, say: Say) -> Path:
    """Decodes every split to a temporary sibling, then renames it; returns where it lies."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()
    except OSError as error:
        temporary = Path(tempfile.mkdtemp(prefix="labelcurve-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        say(
            f"the cache {folder.parent} cannot be written ({error.strerror}): the images are "
            "decoded for this command alone (--cache names another folder)"
        )
        _fill(temporary, source, size, memory, say)
        return temporary
    busy = f"{{holder}} is decoding {source.name} into {folder.parent}: waiting"
    with lock.hold(folder.parent / f".{folder.name}.lock", busy, wait=True, say=say):
        if (folder / "meta.json").exists():
            return folder
        for left in folder.parent.glob(f".{folder.name}-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        temporary.chmod(0o755)  # another user of the same cache may read it
        try:
            _fill(temporary, source, size, memory, say)
            _place(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _fill(folder: Path, source: Source, size: int, memory: int, say: Say) -> None:
    try:
        needed, free = n_bytes(source, size), shutil.disk_usage(folder).free
        keep = needed <= memory or needed * DISK < free
        if not keep:
            say(
                f"{source.name}: {needed / 1e9:,.1f} GB of decoded images do not fit into "
                f"{folder.parent} ({free / 1e9:,.1f} GB free) nor into memory: they are decoded "
                "again in each epoch. Another folder (--cache) would avoid that"
            )
        failures = {
            split: decode(folder, split, rows, size, source.name, say, memory=memory, keep=keep)
            for split, rows in source.splits.items()
        }
        _check_unchanged(source)
        meta = {"name": source.name, "unreadable": failures}
        (folder / "meta.json").write_text(json.dumps(meta))
    except OSError as error:
        raise DataError(
            f"cannot write decoded pixels to {folder}: {error.strerror or error}. Make room, or "
            "name another folder with --cache"
        ) from error


def _check_unchanged(source: Source) -> None:
    """Pixels must not lie in the cache under the fingerprint of other files."""
    changed = source.changed()
    if changed:
        listing = checks.block(map(shown, changed), len(changed))
        raise DataError(
            f"{source.name}: {counted(len(changed), 'file')} changed while being read:\n{listing}\n"
            "Run the same command again once nothing writes there any more"
        )


def _place(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        if (folder / "meta.json").exists():  # another process was faster: its files are the same
            return
        shutil.rmtree(folder)  # remains of an incompletely removed cache
        temporary.rename(folder)
