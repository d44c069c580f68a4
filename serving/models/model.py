"""A bundle that is loaded and warm, and answers requests."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from labelcurve.bundle.store import Bundle
from labelcurve.serving.errors import DeviceLost
from labelcurve.serving.models.answer import heads
from labelcurve.serving.models.batcher import Batcher
from labelcurve.serving.models.device import Device
from labelcurve.serving.models.engine import Engine
from labelcurve.serving.models.precision import Precision, choose
from labelcurve.serving.models.verdict import Rule, Wish, rule
from labelcurve.serving.telemetry.predictions import Predictions

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc's `malloc_trim`: frees what a session needed only for its creation, 5 MB for 7.5 of
graph."""

MOST_RULES = 64
"""Number of wishes whose thresholds a model caches."""


@dataclass(eq=False)
class Model:
    """One version of a model. Requests `hold` it while they need it."""

    bundle: Bundle
    engine: Engine
    batcher: Batcher
    headers: tuple[tuple[bytes, bytes], ...]
    """`X-Model-Name` and `X-Model-Version`, as ASGI takes them."""
    heads: tuple[str, ...] = ()
    """JSON fragments of the classes, as `answer.body` takes them."""
    precision: str = "fp32"
    """Precision of the graph in use."""
    predictions: Predictions | None = None
    """Their metrics."""
    users: int = 0
    retired: bool = False
    rules: dict[Wish, Rule] = field(default_factory=dict)
    """By recent wishes."""

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
        """Keeps it from ending; every call is paired with a `release`."""
        self.users += 1

    def release(self) -> None:
        """Ends it if it is retired and this was the last request that held it."""
        self.users -= 1
        if self.retired and not self.users:
            self.batcher.end()

    def retire(self) -> None:
        """Ends it as soon as no request holds it."""
        self.retired = True
        if not self.users:
            self.batcher.end()

    def rule(self, wish: Wish) -> Rule:
        """Its thresholds for a wish, computed once.

        Raises:
            NotEnough, LabelcurveError: as `verdict.rule`.
        """
        found = self.rules.get(wish)
        if found is None:
            found = rule(self.bundle.manifest, self.precision, wish)
            if len(self.rules) >= MOST_RULES:  # clients may ask for anything
                self.rules.clear()
            self.rules[wish] = found
        return found

    def describe(self) -> dict[str, Any]:
        """Returns the description of the bundle and of the device and precision in use."""
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
            "measured": manifest.measured.name if manifest.measured else None,
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
    bundle: Bundle,
    device: Device,
    threads: int,
    queue: int,
    precision: Precision = "fp32",
    lost: Callable[[DeviceLost], None] = lambda error: None,
) -> Model:
    """Opens a bundle with a warm session and its batcher; `lost` is called if the GPU fails.

    Raises:
        BundleError, DeviceError: as `Engine`.
    """
    engine = open_engine(bundle, device, threads, precision)
    if _malloc_trim:
        _malloc_trim(0)
    predictions = Predictions(bundle.manifest)
    return Model(
        predictions=predictions,
        bundle=replace(bundle, graph=b"", variants={}),  # the session has its own copy
        engine=engine,
        precision=choose(bundle, device, precision)[0],
        batcher=Batcher(engine, bundle.name, queue, predictions.count, lost),
        heads=heads(bundle.manifest.class_names),
        headers=(
            (b"x-model-name", bundle.name.encode()),
            (b"x-model-version", bundle.version.encode()),
        ),
    )
