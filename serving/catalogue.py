"""The models that are served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle import store
from bundle.store import Bundle
from serving.batcher import Batcher
from serving.device import Device
from serving.engine import Engine
from serving.errors import Overloaded
from serving.selection import pick


@dataclass(frozen=True)
class Model:
    """A bundle that is loaded and warm."""

    bundle: Bundle
    engine: Engine
    batcher: Batcher
    headers: tuple[tuple[bytes, bytes], ...]
    """`X-Model-Name` and `X-Model-Version`, as ASGI takes them."""

    @property
    def name(self) -> str:
        """The name under which it was published."""
        return self.bundle.name

    @property
    def version(self) -> str:
        """12 digits; answers name it."""
        return self.bundle.version


def open_engine(bundle: Bundle, device: Device, threads: int) -> Engine:
    """The session of a bundle, warmed.

    Raises:
        BundleError, DeviceError: as `Engine`.
    """
    engine = Engine(
        bundle.graph,
        device,
        threads,
        size=bundle.manifest.preprocessing.size,
        n_classes=len(bundle.manifest.class_names),
        name=bundle.name,
    )
    engine.warm()
    return engine


class Catalogue:
    """Every model of a folder. Empty, and not ready, until `load` has returned."""

    def __init__(self) -> None:
        self.models: tuple[Model, ...] = ()
        self.default: Model | None = None
        self._named: dict[str, Model] = {}

    @property
    def ready(self) -> bool:
        """Whether every model has made an inference at each batch size."""
        return self.default is not None

    def load(self, root: Path, device: Device, threads: int, queue: int) -> None:
        """Loads and warms the current version of every model under `root`.

        Raises:
            BundleError, DeviceError: one of them cannot be served as it should.
        """
        models = []
        for bundle in store.read_all(root):
            engine = open_engine(bundle, device, threads)
            models.append(
                Model(
                    bundle=bundle,
                    engine=engine,
                    batcher=Batcher(engine, bundle.name, queue),
                    headers=(
                        (b"x-model-name", bundle.name.encode()),
                        (b"x-model-version", bundle.version.encode()),
                    ),
                )
            )
        self.models = tuple(models)
        self._named = {m.name: m for m in models} | {f"{m.name}@{m.version}": m for m in models}
        self.default = models[pick(self._bundles(), None)]

    def find(self, wanted: str | None) -> Model:
        """The model that a request means by NAME or NAME@VERSION; the default for None.

        Raises:
            UnknownModel: there is no such model.
            Overloaded: the models are still being loaded.
        """
        if self.default is None:
            raise Overloaded("the models are being loaded")
        if wanted is None:
            return self.default
        return self._named.get(wanted) or self.models[pick(self._bundles(), wanted)]

    def describe(self) -> list[dict[str, Any]]:
        """What `GET /models` answers."""
        return [
            {
                "name": model.name,
                "version": model.version,
                "default": model is self.default,
                "fraction": (manifest := model.bundle.manifest).fraction,
                "n_labels_train": manifest.n_labels_train,
                "n_labels_val": manifest.n_labels_val,
                "dataset": manifest.dataset.name,
                "class_names": list(manifest.class_names),
                "input_size": manifest.preprocessing.size,
                "test": manifest.test.model_dump() if manifest.test else None,
                "provider": model.engine.provider,
                "batch_sizes": list(model.engine.batch_sizes),
            }
            for model in self.models
        ]

    def _bundles(self) -> list[Bundle]:
        return [model.bundle for model in self.models]

    def close(self) -> None:
        """Ends the models' threads."""
        for model in self.models:
            model.batcher.close()
