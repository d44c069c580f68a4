"""A data set as training, evaluation and benchmarks see it: rows of pixels with labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labelcurve.bundle import machine
from labelcurve.bundle.errors import DataError
from labelcurve.bundle.text import counted, listed
from labelcurve.training.data import checks, sizes
from labelcurve.training.data.class_names import check_names
from labelcurve.training.data.corrections import Corrections, identity, read
from labelcurve.training.data.decoded import cache as pixels
from labelcurve.training.data.decoded import digests
from labelcurve.training.data.decoded.cache import clear as clear
from labelcurve.training.data.decoded.cache import default_cache as default_cache
from labelcurve.training.data.decoded.stored import Images, encoded, in_file
from labelcurve.training.data.formats.tree import summary
from labelcurve.training.data.source import UNLABELLED, LeftOut, Rows, Say, Source
from labelcurve.training.data.sources import Selection, open_source
from labelcurve.training.data.split import Split as Split

MEMORY_SHARE = 0.25
"""Share of the memory for decoded images: a network, its optimizer and copies need the rest."""

TESTED = 5
"""Without a test split, one of this many images of each class becomes a test image."""


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be decoded."""

    where: str
    label: int
    """Index into `class_names`; `UNLABELLED` where it has none."""
    why: str


@dataclass(frozen=True)
class Data:
    """A data set, memory-mapped from the cache of decoded pixels."""

    name: str
    """Short: `cifar10`, `digits`, or the folder's name."""
    hash: str
    """SHA-256 over the labelled pixels, classes and splits, whatever the order or the file
    format."""
    class_names: tuple[str, ...]
    size: int
    train: Split
    """Labelled rows, and those without a label, which serve as unlabelled data."""
    test: Split
    """Empty where no class has enough images to hold one out."""
    test_given: bool = True
    """Whether the source has a test split; else `test` is a fifth of its labels."""
    left_out: dict[str, int] = field(default_factory=dict)
    dropped: int = 0
    relabelled: int = 0
    unreadable: tuple[Unreadable, ...] = ()
    corrected_test: Split | None = None
    """The test images with the corrections of `--drop` and `--relabel`, where there are some."""
    whole_pixels_hash: str | None = None
    """`pixels_hash` before `--drop`, where it left images out."""

    @property
    def n_labels(self) -> int:
        """Number of labels in the source, without those of a test split that it provides."""
        return self.train.n_labelled + (0 if self.test_given else len(self.test))

    def labelled(self) -> Data:
        """The data set without the images that have no label."""
        rows = np.flatnonzero(self.train.labels != UNLABELLED)
        return self if len(rows) == len(self.train) else replace(self, train=self.train.take(rows))

    @property
    def pixels_hash(self) -> str:
        """SHA-256 over the training images without their labels, whatever the order or format.

        Those that `--drop` left out count: an extractor trained on all images still matches.
        """
        return self.whole_pixels_hash or _pixels_hash(self.train)


def load(
    data: str | Selection,
    *,
    size: int | None = None,
    cache: Path | None = None,
    skip_unreadable: bool = False,
    memory: int | None = None,
    say: Say = print,
    choose_size: Callable[[int, str], tuple[int, str]] = lambda side, why: (side, why),
) -> Data:
    """Reads and decodes a data set.

    A source without a test split gives a stratified fifth of each class to test: the first fifth
    in the order of the digests, so that it depends on nothing but the images. A class of fewer than
    five gives none.

    Args:
        data: the value of `--data`, or that together with its options.
        size: side of the images in pixels; None takes the natural one of the source or, where it
            has none, of the images (`sizes.natural`).
        cache: folder of downloads and decoded pixels; None takes `default_cache()`.
        skip_unreadable: leave unreadable images out and count them instead of raising.
        memory: bytes for decoded images, beyond which they are streamed; None takes `MEMORY_SHARE`.
        choose_size: may change a natural size and the reason for it.

    Raises:
        DataError: the source cannot be used as it is.
    """
    chosen = Selection(data) if isinstance(data, str) else data
    cache = cache or default_cache()
    source = open_source(chosen, cache / "downloads", say)
    check_names(chosen.data, source.class_names)
    if size is None and source.size is None:
        size, why = choose_size(*sizes.natural(source.splits["train"]))
        say(f"image size: {size} px ({why}); --image-size sets another")
    size = size or source.size or 0
    if not 8 <= size <= 1024:
        raise DataError(f"--image-size {size}: allowed are 8 to 1024 pixels")
    memory = memory or int(MEMORY_SHARE * machine.memory())
    folder = pixels.at_hand(cache, source, size, memory, say)
    loaded, unreadable = _opened(folder, source, size, memory, say)
    corrections = Corrections(chosen.data, chosen.drop, chosen.relabel)
    others = {identity(found.where, chosen.data): found for found in unreadable}
    dropped = read(chosen.drop, "--drop")
    if broken := [others[name] for name in others if name not in dropped]:
        _report_unreadable(source.name, broken, skip_unreadable, say)
    train, test = loaded["train"], loaded.get("test", loaded["train"].take(np.arange(0)))
    if chosen.labelled:
        checks.report_conflicts(source.name, source.class_names, train, say)
        checks.report_repeated(source.name, train, say)
    if chosen.labelled and "test" not in loaded:
        train, test = _held_out(source, train, say)
    corrected = corrections.apply(source.class_names, train, test, list(others), say)
    whole, train = train, corrected.train
    checks.report_shared(source.name, source.class_names, train, test, say)
    train, repeated = _without_repeated(train, test)
    if chosen.labelled:
        checks.check_classes(chosen.data, source.class_names, train, loaded.get("test"), say)
    not_read = [LeftOut(f"{found.where}: {found.why}", "unreadable images") for found in unreadable]
    left_out = (*source.left_out, *not_read, *repeated)
    checks.report_left_out(source.name, left_out, cache, say)
    return Data(
        name=source.name,
        hash=_hash(source.class_names, train, test),
        class_names=source.class_names,
        size=size,
        train=train,
        test=test,
        test_given="test" in source.splits,
        left_out=summary(left_out),
        dropped=corrected.dropped,
        relabelled=corrected.relabelled,
        unreadable=tuple(unreadable),
        corrected_test=corrected.test if chosen.drop or chosen.relabel else None,
        whole_pixels_hash=_pixels_hash(whole) if corrected.dropped else None,
    )


def _opened(
    folder: Path, source: Source, size: int, memory: int, say: Say
) -> tuple[dict[str, Split], list[Unreadable]]:
    """The splits, and the images that could not be decoded."""
    needed = pixels.n_bytes(source, size)
    if needed > memory:
        say(
            f"{source.name}: decoded images take {needed / 1e9:,.1f} GB, more than the "
            f"{memory / 1e9:,.1f} GB of memory for them (--memory-gb): streamed from the disk"
        )
    try:
        loaded = {
            split: _open(folder, split, rows, size, memory, needed > memory)
            for split, rows in source.splits.items()
        }
        failures = pixels.unreadable(folder)
    except (OSError, ValueError, EOFError, LookupError, TypeError) as error:
        raise pixels.damaged(folder, error) from error
    return loaded, [
        Unreadable(source.splits[split].where(row), int(source.splits[split].labels[row]), why)
        for split, found in failures.items()
        for row, why in found
    ]


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
    # A few rows are looked up: mapped again, without the pages that were just read.
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


def _held_out(source: Source, train: Split, say: Say) -> tuple[Split, Split]:
    """Train and test of a source without a test split."""
    held, groups = np.zeros(len(train), bool), checks.groups(train.digests)
    small = []
    for label, name in enumerate(source.class_names):
        rows = np.flatnonzero(train.labels == label)
        n, group = len(rows) // TESTED, groups[rows]
        while 0 < n < len(rows) and group[n] == group[n - 1]:
            n += 1  # copies are neighbours, and stay together
        held[rows[: n if n < len(rows) else 0]] = True
        if len(rows) < TESTED:
            small.append(f"{name} ({len(rows)})")
    test, rest = train.take(np.flatnonzero(held)), train.take(np.flatnonzero(~held))
    if small:
        few = listed(small, checks.LISTED)
        say(f"{source.name}: too few images to have some in test: {few}")
    if len(test):
        say(
            f"{source.name}: no test split, so a stratified fifth is test: "
            f"{len(test):,} of {train.n_labelled:,} images"
        )
    else:
        say(f"{source.name}: no test split, and too few images to hold one out: nothing is tested")
    return rest, test


def _without_repeated(train: Split, test: Split) -> tuple[Split, list[LeftOut]]:
    """Leaves unlabelled images out that are in test, or in train with a label."""
    repeated = checks.known_elsewhere(train, test)
    if not repeated.any():
        return train, []
    left_out = [
        LeftOut(train.where(row), "unlabelled images also labelled or in test")
        for row in np.flatnonzero(repeated).tolist()
    ]
    return train.take(np.flatnonzero(~repeated)), left_out


def _report_unreadable(name: str, unreadable: list[Unreadable], skip: bool, say: Say) -> None:
    lines = (f"{item.where}: {item.why}" for item in unreadable)
    listing = checks.block(lines, len(unreadable))
    if not skip:
        raise DataError(
            f"{name}: {counted(len(unreadable), 'image')} cannot be read:\n{listing}\n"
            "Repair or remove them, or continue without them with --skip-unreadable"
        )
    say(f"{name}: {counted(len(unreadable), 'unreadable image')} left out:\n{listing}")


def _pixels_hash(train: Split) -> str:
    total = hashlib.sha256()
    for _, part in train.digests.parts():
        total.update(part.tobytes())
    return total.hexdigest()


def _hash(class_names: tuple[str, ...], train: Split, test: Split) -> str:
    total = hashlib.sha256("\n".join(class_names).encode())
    for split in (train, test):
        labelled: NDArray[np.bool_] = split.labels != UNLABELLED
        total.update(int(labelled.sum()).to_bytes(8, "big"))
        for first, part in split.digests.parts():
            wanted = labelled[first : first + len(part)]
            labels = split.labels[first : first + len(part)][wanted]
            lines = np.empty((len(labels), 36), np.uint8)
            lines[:, :32] = part[wanted].view(np.uint8).reshape(-1, 32)
            lines[:, 32:] = labels.astype(">u4").view(np.uint8).reshape(-1, 4)
            total.update(lines.data)
    return total.hexdigest()
