"""A bundle that is loaded, warm, and answers."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import Any

from bundle.store import Bundle
from serving.answer import heads
from serving.batcher import Batcher
from serving.device import Device
from serving.engine import Engine
from serving.precision import Precision, choose

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""Of glibc: gives back what a session took only while it was made, 5 MB beside a graph of 7.5."""


@dataclass(eq=False)
class Model:
    """One version of a model. Requests `hold` it while they need it."""

    bundle: Bundle
    engine: Engine
    batcher: Batcher
    headers: tuple[tuple[bytes, bytes], ...]
    """`X-Model-Name` and `X-Model-Version`, as ASGI takes them."""
    heads: tuple[str, ...] = ()
    """Of its classes, as `answer.body` takes them."""
    precision: str = "fp32"
    """Of the graph that answers."""
    users: int = 0
    retired: bool = False

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def name(self) -> str:
        """The name under which it was published."""
        return self.bundle.name

    @property
    def version(self) -> str:
        """12 digits; answers name it."""
        return self.bundle.version

    def hold(self) -> None:
        """Keeps it from ending; every call is paired with one of `release`."""
        self.users += 1

    def release(self) -> None:
        """Ends it where it is retired and this was the last request that held it."""
        self.users -= 1
        if self.retired and not self.users:
            self.batcher.end()

    def retire(self) -> None:
        """Ends it as soon as no request holds it."""
        self.retired = True
        if not self.users:
            self.batcher.end()

    def describe(self) -> dict[str, Any]:
        """What the bundle says of itself, and what it runs on."""
        manifest = self.bundle.manifest
        added = next((v for v in manifest.variants if v.precision == self.precision), None)
        test = added.test if added else manifest.test
        return {
            "name": self.name,
            "version": self.version,
            "fraction": manifest.fraction,
            "n_labels_train": manifest.n_labels_train,
            "n_labels_val": manifest.n_labels_val,
            "dataset": manifest.dataset.name,
            "class_names": list(manifest.class_names),
            "input_size": manifest.preprocessing.size,
            "precision": self.precision,
            "test": test.model_dump() if test else None,
            "provider": self.engine.provider,
            "batch_sizes": list(self.engine.batch_sizes),
        }


def open_engine(
    bundle: Bundle, device: Device, threads: int, precision: Precision = "fp32"
) -> Engine:
    """The session of a bundle, warmed.

    Raises:
        BundleError, DeviceError: as `Engine`.
    """
    engine = Engine(
        choose(bundle, device, precision)[1],
        device,
        threads,
        size=bundle.manifest.preprocessing.size,
        n_classes=len(bundle.manifest.class_names),
        name=bundle.name,
    )
    engine.warm()
    return engine


def open_model(
    bundle: Bundle, device: Device, threads: int, queue: int, precision: Precision = "fp32"
) -> Model:
    """A bundle with a warm session and a batcher of its own.

    Raises:
        BundleError, DeviceError: as `Engine`.
    """
    engine = open_engine(bundle, device, threads, precision)
    if _malloc_trim:
        _malloc_trim(0)
    return Model(
        bundle=replace(bundle, graph=b"", variants={}),  # the session has a copy of its own
        engine=engine,
        precision=choose(bundle, device, precision)[0],
        batcher=Batcher(engine, bundle.name, queue),
        heads=heads(bundle.manifest.class_names),
        headers=(
            (b"x-model-name", bundle.name.encode()),
            (b"x-model-version", bundle.version.encode()),
        ),
    )
