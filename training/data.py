"""A data set as training, evaluation and benchmarks see it: rows of pixels with labels."""

from __future__ import annotations

import atexit
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bundle import machine, preprocess
from bundle.errors import DataError, LabelcurveError
from training import digests, lock
from training.decoding import decode
from training.digests import AT_ONCE, Digests, word
from training.folder import unlabelled
from training.source import Index, Rows, Say, Source
from training.sources import open_source
from training.stored import Images, encoded, in_file, take

FORMAT = 2
"""Of the cached files: part of their key."""

MEMORY_SHARE = 0.25
"""Of the memory, for decoded images: a network, its optimiser and copies need the rest."""

DISK = 1.3
"""Times the bytes of the decoded images that must be free to write and sort them."""

LISTED = 20
"""Unreadable images that a message names."""

KEY = 20
"""Digits of a folder's name in the cache."""

_held: dict[Path, int] = {}
"""Folders of the cache that this process has read from, each with its descriptor of `lock.use`."""


@dataclass(frozen=True)
class Split:
    """Rows in the order of their digests, whatever the names and formats of the files."""

    images: Images
    """[N, size, size, 3], as `bundle.preprocess.prepare` gives them; read-only, and outside memory
    where they are too many for it."""
    labels: Index
    """[N], indices into the data set's `class_names`."""
    digests: Digests
    """[N] of the pixels before resizing."""
    read: Callable[[int], bytes]
    """The original file bytes of a row."""
    where: Callable[[int], str]
    """Where a row comes from, for messages."""

    def take(self, rows: Index) -> Split:
        """The given rows, in the given order."""
        read, where, rows = self.read, self.where, rows.astype(np.int32, copy=False)
        return Split(
            take(self.images, rows),
            self.labels[rows],
            self.digests.take(rows),
            lambda i: read(int(rows[i])),
            lambda i: where(int(rows[i])),
        )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """A data set, memory-mapped from the cache of decoded pixels."""

    name: str
    """Short: `cifar10`, `digits`, or the folder's name."""
    hash: str
    """SHA-256 over pixels, classes and splits, whatever the order or the file format."""
    class_names: tuple[str, ...]
    size: int
    train: Split
    test: Split

    @property
    def pixels_hash(self) -> str:
        """SHA-256 over the training images without their labels, whatever the order or format."""
        total = hashlib.sha256()
        for _, part in self.train.digests.parts():
            total.update(part.tobytes())
        return total.hexdigest()


def default_cache() -> Path:
    """The user's cache folder, `~/.cache/labelcurve` on Linux."""
    import platformdirs

    return platformdirs.user_cache_path("labelcurve", appauthor=False)


def load(
    data: str,
    *,
    size: int | None = None,
    cache: Path | None = None,
    skip_unreadable: bool = False,
    labelled: bool = True,
    memory: int | None = None,
    say: Say = print,
) -> Data:
    """Reads `digits`, `cifar10`, a folder of class folders or a folder of Parquet files.

    A source without a test split gives a stratified fifth of each class to test: the first fifth
    in the order of the digests, so that it depends on nothing but the images.

    Args:
        data: the value of `--data`.
        size: side of the images in pixels; None takes the natural one of the source.
        cache: folder of downloads and decoded pixels; None takes `default_cache()`.
        skip_unreadable: leave unreadable images out and count them instead of raising.
        labelled: else every image below the folder is for training, and none has a class.
        memory: bytes that decoded images may take; more are read while they are used. None takes
            `MEMORY_SHARE` of the machine's, or of what the cgroup allows.
        say: receives progress and findings, line by line.

    Raises:
        DataError: the source cannot be used as it is.
    """
    cache = cache or default_cache()
    if labelled:
        source = open_source(data, cache / "downloads", say)
    else:
        source = unlabelled(Path(data).expanduser(), say)
    twice = sorted({name for name in source.class_names if source.class_names.count(name) > 1})
    if twice:
        raise DataError(f"{data}: class names must differ, these occur twice: {', '.join(twice)}")
    size = size or source.size
    if not 8 <= size <= 1024:
        raise DataError(f"--image-size {size}: allowed are 8 to 1024 pixels")
    key = f"{FORMAT} {preprocess.VERSION} {size} {source.fingerprint} {source.class_names}"
    folder = cache / "pixels" / hashlib.sha256(key.encode()).hexdigest()[:KEY]
    memory = memory or int(MEMORY_SHARE * machine.memory())
    folder = _at_hand(folder, source, size, memory, say)
    needed = _bytes(source, size)
    if needed > memory:
        say(
            f"{source.name}: decoded images take {needed / 1e9:,.1f} GB, more than the "
            f"{memory / 1e9:,.1f} GB of memory for them (--memory-gb): read while they are used"
        )
    try:
        loaded = {
            split: _open(folder, split, rows, size, memory, needed > memory)
            for split, rows in source.splits.items()
        }
        unreadable = json.loads((folder / "meta.json").read_text())["unreadable"]
    except (OSError, ValueError, EOFError, LookupError, TypeError) as error:
        raise _damaged(folder, error) from error
    _report_unreadable(unreadable, source, skip_unreadable, say)
    train = loaded["train"]
    if not labelled:
        test = train.take(np.arange(0))
    elif "test" in loaded:
        test = loaded["test"]
    else:
        held = np.zeros(len(train), bool)
        for label in range(len(source.class_names)):
            rows = np.flatnonzero(train.labels == label)
            if len(rows) < 5:
                raise DataError(
                    f"{data}: class {source.class_names[label]!r} has {len(rows)} image"
                    f"{'s' * (len(rows) != 1)}; without a test/ folder a fifth "
                    "of each class becomes test: at least 5 are needed"
                )
            held[rows[: len(rows) // 5]] = True
        test, train = train.take(np.flatnonzero(held)), train.take(np.flatnonzero(~held))
        say(
            f"{source.name}: no test split, so a stratified fifth is test: "
            f"{len(test):,} of {len(held):,} images"
        )
    shared = _shared(train, test)
    if shared:
        say(f"{source.name}: {shared} train images are also in test (same pixels)")
    if labelled:
        _report_two_classes(source, loaded["train"], say)
        _check_classes(data, source, train, test)
    return Data(
        name=source.name,
        hash=_hash(source.class_names, train, test),
        class_names=source.class_names,
        size=size,
        train=train,
        test=test,
    )


def clear(cache: Path | None = None, say: Say = print, before: float = math.inf) -> None:
    """Removes the cached pixels that no other process uses; downloads stay.

    Args:
        cache: as for `load`.
        say: is told what stays.
        before: time, of the epoch; what was cached later stays.
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
    """Of the data set whose pixels are cached there."""
    with suppress(OSError, ValueError, KeyError):
        return str(json.loads((folder / "meta.json").read_text())["name"])
    return "unknown"


def _at_hand(folder: Path, source: Source, size: int, memory: int, say: Say) -> Path:
    """Where the decoded images lie; as long as this process lives, no other clears them."""
    while True:
        there = folder
        if not (folder / "meta.json").exists():
            there = _decode_into(folder, source, size, memory, say)
        try:
            descriptor = lock.use(there / "meta.json")
        except OSError as error:
            raise _damaged(there, error) from error
        if descriptor is not None:
            if there in _held:
                os.close(_held[there])
            _held[there] = descriptor
            return there


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(
        f"the cached pixels in {folder} are damaged ({str(error).partition('. ')[0]}): decode them "
        "anew with --clear-cache"
    )


def _shared(train: Split, test: Split) -> int:
    """Train images whose pixels are in test, too."""
    if not len(test):
        return 0
    # By their first eight bytes before all of them, which takes less memory.
    there, shared = np.concatenate([word(part, 0) for _, part in test.digests.parts()]), 0
    for _, part in train.digests.parts():
        first = word(part, 0)
        place = there.searchsorted(first).clip(max=len(there) - 1)
        likely = there[place] == first
        shared += int((part[likely] == test.digests[place[likely]]).sum())
    return shared


def _report_two_classes(source: Source, train: Split, say: Say) -> None:
    """The same pixels under two classes teach nothing but doubt: most often a mistake."""
    # Rows are in the order of their digests: equal ones are neighbours.
    first: list[int] = []
    for begin in range(0, len(train), AT_ONCE):
        rows = slice(begin, begin + AT_ONCE + 1)
        part, labels = train.digests[rows], train.labels[rows]
        twice = (part[1:] == part[:-1]) & (labels[1:] != labels[:-1])
        first += (begin + np.flatnonzero(twice)).tolist()
    if not first:
        return
    lines = [
        f"  {train.where(i)} ({source.class_names[train.labels[i]]}) and {train.where(i + 1)} "
        f"({source.class_names[train.labels[i + 1]]})"
        for i in first[:LISTED]
    ]
    if len(first) > LISTED:
        lines.append(f"  and {len(first) - LISTED} more")
    say(
        f"{source.name}: {len(first)} train images are there under two classes (same pixels):\n"
        + "\n".join(lines)
    )


def _check_classes(data: str, source: Source, train: Split, test: Split) -> None:
    for name, split, least in (("train", train, 2), ("test", test, 1)):
        counts = np.bincount(split.labels, minlength=len(source.class_names))
        short = [
            f"{source.class_names[i]!r} ({n})" for i, n in enumerate(counts.tolist()) if n < least
        ]
        if short:
            raise DataError(
                f"{data}: too few {name} images of {', '.join(short[:LISTED])}: at least {least} "
                "a class are needed (train: one to train, one for validation)"
            )


def _hash(class_names: tuple[str, ...], train: Split, test: Split) -> str:
    total = hashlib.sha256("\n".join(class_names).encode())
    for split in (train, test):
        total.update(len(split).to_bytes(8, "big"))
        for first, part in split.digests.parts():
            labels = split.labels[first : first + len(part)]
            lines = np.empty((len(part), 36), np.uint8)
            lines[:, :32] = part.view(np.uint8).reshape(-1, 32)
            lines[:, 32:] = labels.astype(">u4").view(np.uint8).reshape(-1, 4)
            total.update(lines.data)
    return total.hexdigest()


def _decode_into(folder: Path, source: Source, size: int, memory: int, say: Say) -> Path:
    """Decodes every split beside `folder` and renames it into place; returns where it lies."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()
    except OSError as error:
        beside = Path(tempfile.mkdtemp(prefix="labelcurve-"))
        atexit.register(shutil.rmtree, beside, ignore_errors=True)
        say(f"the cache {folder.parent} cannot be written ({error.strerror}): decoding anew")
        _fill(beside, source, size, memory, say)
        return beside
    busy = f"{{holder}} is decoding {source.name} into {folder.parent}: waiting"
    with lock.hold(folder.parent / f".{folder.name}.lock", busy, wait=True, say=say):
        if (folder / "meta.json").exists():
            return folder
        for left in folder.parent.glob(f".{folder.name}-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        beside.chmod(0o755)  # another user of the same cache may read it
        try:
            _fill(beside, source, size, memory, say)
            _place(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder


def _fill(folder: Path, source: Source, size: int, memory: int, say: Say) -> None:
    try:
        needed, free = _bytes(source, size), shutil.disk_usage(folder).free
        keep = needed <= memory or needed * DISK < free
        if not keep:
            say(
                f"{source.name}: {needed / 1e9:,.1f} GB of decoded images do not fit into "
                f"{folder.parent} ({free / 1e9:,.1f} GB free) nor into memory: they are decoded "
                "again in each epoch. Another folder, --cache, would spare that"
            )
        unreadable = {
            split: decode(folder, split, rows, size, source.name, say, memory=memory, keep=keep)
            for split, rows in source.splits.items()
        }
        _check_unchanged(source)
        meta = {"name": source.name, "unreadable": unreadable}
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
        listing = "\n".join(f"  {path}" for path in changed[:LISTED])
        raise DataError(
            f"{source.name}: {len(changed)} files changed while they were read:\n{listing}\n"
            "Give the same command again when nothing writes there any more"
        )


def _place(beside: Path, folder: Path) -> None:
    try:
        beside.rename(folder)
    except OSError:
        if (folder / "meta.json").exists():  # another process was faster: its files are the same
            return
        shutil.rmtree(folder)  # what is left of a cache that was half removed
        beside.rename(folder)


def _bytes(source: Source, size: int) -> int:
    """Of all images, decoded."""
    return sum(len(rows.labels) for rows in source.splits.values()) * 3 * size * size


def _open(folder: Path, split: str, rows: Rows, size: int, memory: int, stored: bool) -> Split:
    read, where = rows.read, rows.where
    path = folder / f"{split}-rows.npy"
    order = np.load(path, mmap_mode="r").astype(np.int32)
    there = np.zeros(len(rows.labels), bool)
    there[order] = True
    if there.sum() != len(order):
        raise ValueError(f"{path.name} names a row twice")
    known = digests.in_file(folder / f"{split}-digests.npy", len(order))
    known.check()
    # Looked up for a few rows: mapped anew, without the pages that were read just now.
    looked_up = np.load(path, mmap_mode="r")
    file = folder / f"{split}-images.npy"
    images: Images
    if not file.exists():
        images = encoded(rows, order, size, memory)
    elif stored:
        images = in_file(file, memory)
    else:
        images = np.load(file, mmap_mode="r")
    if tuple(images.shape) != (len(order), size, size, 3):
        raise ValueError(f"{file.name} holds {images.shape}")
    return Split(
        images=images,
        labels=rows.labels[order],
        digests=known,
        read=lambda i: read(int(looked_up[i])),
        where=lambda i: where(int(looked_up[i])),
    )


def _report_unreadable(
    unreadable: dict[str, list[tuple[int, str]]], source: Source, skip: bool, say: Say
) -> None:
    failures = [
        (source.splits[split].where(row), why)
        for split, found in unreadable.items()
        for row, why in found
    ]
    if not failures:
        return
    lines = [f"  {where}: {why}" for where, why in failures[:LISTED]]
    if len(failures) > LISTED:
        lines.append(f"  and {len(failures) - LISTED} more")
    listing = "\n".join(lines)
    if not skip:
        raise DataError(
            f"{source.name}: {len(failures)} images cannot be read:\n{listing}\n"
            "Mend or remove them, or go on without them with --skip-unreadable"
        )
    say(f"{source.name}: {len(failures)} unreadable images are left out:\n{listing}")
