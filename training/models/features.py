"""Frozen features: the embedding of images by a pretrained backbone, computed once and cached.

On a CPU the embedding comes from the exported graph in ONNX Runtime, which is the one that will be
served and takes a third of torch's time; on a GPU from torch.
"""

from __future__ import annotations

import hashlib
import io
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from labelcurve.bundle import files, preprocess
from labelcurve.bundle.errors import DataError
from labelcurve.training.data.dataset import Split, default_cache
from labelcurve.training.models import export
from labelcurve.training.models.backbones import Network
from labelcurve.training.runtime.console import say
from labelcurve.training.runtime.device import Device, to_device

Computed = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Rows, int64 [B], and their vectors, float32 [B, D]."""

KEPT_EVERY = 30.0
"""Seconds after which what was computed is written: the most that an interruption loses."""


def features(
    network: Network,
    split: Split,
    version: str,
    device: Device,
    *,
    cache: Path | None = None,
    on_progress: Callable[[float, float], None] = lambda *_: None,
) -> NDArray[np.float32]:
    """The embedding of every image of a split, float32 [N, D].

    Rows that were computed before, for whatever split or command, are read from the cache: they are
    known by the digest of their pixels, weights and kind of the network, preprocessing and size.

    Args:
        network: with the pretrained weights; the classifier is not used.
        split: the images; no label is read.
        version: of the weights (`Extractor.version`).
        cache: folder of downloads and decoded pixels; None takes `default_cache()`.
        on_progress: receives the share that is done, and the seconds that are left.

    Raises:
        DataError: a file in the cache is damaged.
    """
    size = split.images.shape[1]
    key = f"{version}-{_kind(network)}-{size}px-v{preprocess.VERSION}"
    return kept(
        (cache or default_cache()) / "features" / key,
        network.dim,
        split,
        lambda rows: _embedded(network, split, rows, device, cache or default_cache()),
        on_progress,
    )


def _kind(network: Network) -> str:
    """What an embedding depends on besides the weights: the same file may be read as another
    network of a library (`timm:NAME=FILE`), of other activations or another normalisation."""
    parts = (network.shrink, network.backbone, network.mean.tolist(), network.std.tolist())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def kept(
    folder: Path,
    dim: int,
    split: Split,
    compute: Callable[[NDArray[np.int64]], Iterator[Computed]],
    on_progress: Callable[[float, float], None] = lambda *_: None,
) -> NDArray[np.float32]:
    """A vector of every image of a split, float32 [N, dim]; rows that are in `folder` are read.

    Where the folder cannot be written, they are computed for this command alone, which is said.

    Args:
        folder: of one kind of vectors, for any images.
        compute: batches of the given rows, int64 [M], with their vectors.
        on_progress: receives the share that is done, and the seconds that are left.

    Raises:
        DataError: a file in the folder is damaged.
    """
    store = _Store(folder, dim)
    digests = np.concatenate([part for _, part in split.digests.parts()])
    wanted, place = np.unique(digests, return_index=True)
    missing = np.sort(place[~np.isin(wanted, store.digests)])
    if len(missing):
        began, last = time.monotonic(), time.monotonic()
        done, waiting = 0, []
        for rows, found in compute(missing):
            waiting.append((digests[rows], found))
            done += len(rows)
            took = time.monotonic() - began
            on_progress(done / len(missing), took * (len(missing) / done - 1))
            if time.monotonic() - last > KEPT_EVERY or done == len(missing):
                store.add(*(np.concatenate(parts) for parts in zip(*waiting, strict=True)))
                waiting, last = [], time.monotonic()
    return store.look_up(digests)


def _embedded(
    network: Network, split: Split, rows: NDArray[np.int64], device: Device, cache: Path
) -> Iterator[Computed]:
    """Batches of rows with their embedding."""
    network.eval()
    size = split.images.shape[1]
    on_cpu = device.device.type == "cpu"
    batch = min(64, max(1, (8 if on_cpu else 64) * 224**2 // size**2))
    if on_cpu:
        classes = tuple(str(i) for i in range(network.classifier.out_features))
        # Any temperature but 1, which the exporter would leave out of the graph.
        graph = export.to_onnx(export.Served(network, 2.0), size, classes, cache)
        runtime = export.session(graph, torch.get_num_threads())
    else:
        network.to(device.device)
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        pixels = np.ascontiguousarray(split.images[part])
        if on_cpu:
            (found,) = runtime.run(["embedding"], {"images": pixels})
        else:
            with torch.inference_mode():
                images = to_device(pixels, device)
                found = network.embed(network.normalise(images)).float().cpu().numpy()
        yield part, found.astype(np.float32, copy=False)


class _Store:
    """A folder of `.npz` files, each with digests and their features; only ever added to."""

    def __init__(self, folder: Path, dim: int) -> None:
        self._folder = folder
        self._failed = False
        # Joined when they are looked up: there may be hundreds of files.
        self._digests = [np.empty(0, "V32")]
        self._features = [np.empty((0, dim), np.float32)]
        for path in sorted(folder.glob("*.npz")):
            try:
                with path.open("rb") as file, np.load(file) as found:
                    digests, rows = found["digests"], found["features"]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                raise DataError(
                    f"{path} is damaged ({error}): remove it to compute it again"
                ) from error
            self._take(digests, rows)

    @property
    def digests(self) -> NDArray[np.void]:
        """Of the images that are there, [N]."""
        return np.concatenate(self._digests)

    def add(self, digests: NDArray[np.void], rows: NDArray[np.float32]) -> None:
        """Keeps some more."""
        buffer = io.BytesIO()
        np.savez(buffer, digests=digests, features=rows)
        name = hashlib.sha256(digests.tobytes()).hexdigest()[:16]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            files.replace(self._folder / f"{name}.npz", buffer.getbuffer())
        except OSError as error:  # hours of work may depend on what was computed
            if not self._failed:
                say(
                    f"{self._folder} cannot be written ({error.strerror or error}): what is "
                    "computed is not kept for another command"
                )
            self._failed = True
        self._take(digests, rows)

    def look_up(self, digests: NDArray[np.void]) -> NDArray[np.float32]:
        """Features of digests that are there, float32 [N, D]."""
        there = self.digests
        order = there.argsort(kind="stable")
        self._features = [np.concatenate(self._features)]  # the parts are not kept beside it
        return self._features[0][order[there[order].searchsorted(digests)]]

    def _take(self, digests: NDArray[np.void], rows: NDArray[np.float32]) -> None:
        self._digests.append(digests)
        self._features.append(rows)
