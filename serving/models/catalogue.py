"""The models that are served, kept up to date while the folder changes.

A new `current` version is loaded and warmed in the background, then replaces the old one between
two requests. The old one stays for as long as requests use it, and a few versions stay loaded so
that NAME@VERSION and a rollback cost nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from labelcurve.bundle import promotion, store
from labelcurve.bundle.errors import BundleError, LabelcurveError
from labelcurve.bundle.store import Found
from labelcurve.serving.errors import DeviceLost, Overloaded, UnknownModel
from labelcurve.serving.models.device import Device
from labelcurve.serving.models.model import Model, open_model
from labelcurve.serving.models.precision import Precision
from labelcurve.serving.models.refusals import Refusals
from labelcurve.serving.models.selection import unknown
from labelcurve.serving.settings import Settings
from labelcurve.serving.telemetry import metrics

MAX_PENDING = 4
"""Older versions that may be queued for loading because requests named them."""

logger = logging.getLogger("labelcurve")


class _Serving(NamedTuple):
    """Settings with which a worker opens models."""

    root: Path
    device: Device
    threads: int
    queue: int
    keep: int
    precision: Precision
    only: tuple[str, ...]
    """Names of the models that are served; all if empty."""


class Catalogue:
    """Every model of a folder. Empty, and not ready, until `load` has returned.

    All but `load` is called on the event loop.
    """

    def __init__(
        self,
        remember: Callable[[str, str], None] = lambda name, version: None,
        lost: Callable[[DeviceLost], None] = lambda error: None,
    ) -> None:
        """`remember` is called with name and version of each model that begins to answer.

        `lost` is called on the event loop when a GPU failed.
        """
        self._lost = lost
        self.models: tuple[Model, ...] = ()
        self.default: Model | None = None
        self._remember = remember
        self._named: dict[str, Model] = {}
        self._kept: OrderedDict[str, Model] = OrderedDict()
        self._found: dict[str, Found] = {}
        self._pending: dict[str, asyncio.Task[Model]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._warned: dict[str, str] = {}
        self._default_name: str | None = None
        """The default that the folder names."""
        self._reason = ""
        """Why it is the default, as it was logged last."""

    @property
    def ready(self) -> bool:
        """Whether every model is loaded and warm."""
        return self.default is not None

    def load(
        self, settings: Settings, device: Device, known_good: Mapping[str, str] | None = None
    ) -> None:
        """Loads and warms the current version of every model.

        Args:
            settings: folder, threads, queue and how many versions are kept.
            device: from `choose_device`.
            known_good: version by name of what other workers, or this one before it died, serve.
                It replaces a current version that is broken.

        Raises:
            BundleError, DeviceError: one cannot be served as it should, or none at all.
        """
        self._serving = _Serving(
            settings.models,
            device,
            settings.threads_of_worker(),
            settings.queue,
            settings.keep,
            settings.precision,
            settings.model,
        )
        self._refusals = Refusals(settings.models)
        known_good = known_good or {}
        names = store.names(settings.models)
        self._scan()
        models = []
        for name in filter(self._found.__contains__, names):
            try:
                models.append(self._open(name))
            except LabelcurveError as error:
                if not known_good:
                    raise
                self._refuse(name, self._found[name].current or "", error)
                if name in known_good:
                    with suppress(LabelcurveError):
                        models.append(self._open(name, known_good[name]))
        if not models:
            raise BundleError(f"no model in {settings.models} can be served")
        self._install({model.name: model for model in models})

    def find(self, wanted: str | None) -> Model | None:
        """The model that a request names by NAME or NAME@VERSION; the default for None.

        Returns:
            None for a version that exists and is not loaded: `fetch` loads it.

        Raises:
            UnknownModel: the model does not exist.
            Overloaded: the models are still being loaded.
        """
        if self.default is None:
            raise Overloaded("the models are being loaded")
        if wanted is None:
            return self.default
        model = self._named.get(wanted)
        if model is None and (model := self._kept.get(wanted)):
            self._kept.move_to_end(wanted)
        if model is None and not self._exists(wanted):
            raise unknown([str(each) for each in self.models], wanted)
        return model

    async def fetch(self, wanted: str) -> Model:
        """Loads the version that `wanted`, a NAME@VERSION, names; it stays loaded for a while.

        Raises:
            UnknownModel: it cannot be served.
            Overloaded: too many others are being loaded.
        """
        task = self._pending.get(wanted)
        if task is None:
            if len(self._pending) >= MAX_PENDING:
                raise Overloaded("other versions are being loaded: try again", retry_after=5)
            task = asyncio.create_task(self._fetch(wanted))
            self._pending[wanted] = task
            task.add_done_callback(lambda _: self._pending.pop(wanted, None))
        return await asyncio.shield(task)

    async def look(self) -> None:
        """Follows what has changed in the folder since the last time."""
        async with self._one_at_a_time:
            try:
                await asyncio.to_thread(self._scan)
            except BundleError as error:
                self._warn("", f"{error}; what is loaded is still served")
                return
            current = {n: f.current for n, f in self._found.items() if f.current}
            if not current:
                self._warn(
                    "", f"no model left in {self._serving.root}: the last ones are still served"
                )
                return
            self._warned.pop("", None)
            self.warn_of_unlinked()
            serving = {model.name: model for model in self.models}
            unreadable = {name for name, found in self._found.items() if found.error}
            for name in serving.keys() - current.keys() - unreadable:
                logger.warning("%s was removed from the folder: it is drained", name)
                self._discard(name)
            for name, version in current.items():
                if (model := serving.get(name)) and model.version == version:
                    continue
                if self._refusals.worth_trying(f"{name}@{version}", self._stamp(name, version)):
                    await self._follow(name, version)
            self._forget_deleted()
            self._choose_default(settled=True)

    def warn_of_unlinked(self) -> None:
        """Warns, once, of names that cannot be read, or have versions and no link `current`."""
        served = {model.name for model in self.models}
        for name, found in self._found.items():
            if found.error:
                left = "what is loaded is still served" if name in served else "it is not served"
                self._warn(name, f"{name} cannot be read: {found.error}; {left}")
            elif found.current is None:
                self._warn(
                    name,
                    f"{name} has {', '.join(found.versions)} and no link `{store.CURRENT}`: "
                    "it is not served",
                )
            else:
                self._warned.pop(name, None)

    def describe(self) -> list[dict[str, Any]]:
        """Returns the answer of `GET /models`."""
        refused = {each["name"]: each for each in self.refused()}
        return [
            {
                **model.describe(),
                "default": model is self.default,
                "versions": self.versions(model),
                "refused": refused.get(model.name),
            }
            for model in self.models
        ]

    def refused(self) -> list[dict[str, str]]:
        """Every name whose current version cannot be served, with that version and the error."""
        return [
            {"name": name, "version": found.current, "error": error}
            for name, found in self._found.items()
            if found.current and (error := self._refusals.get(f"{name}@{found.current}"))
        ]

    def close(self) -> None:
        """Ends the models' threads."""
        for model in (*self.models, *self._kept.values()):
            model.batcher.close()

    def _open(self, name: str, version: str | None = None) -> Model:
        how = self._serving
        bundle = store.read(how.root, name, version)
        return open_model(bundle, how.device, how.threads, how.queue, how.precision, self._lost)

    async def _follow(self, name: str, version: str) -> None:
        model = self._kept.pop(f"{name}@{version}", None)
        if model is None:
            try:
                # By the version, not by the link: it may move on meanwhile.
                model = await asyncio.to_thread(self._open, name, version)
            except Exception as error:  # whatever it is, the old one continues to serve
                self._refuse(name, version, error)
                return
        self._refusals.drop(str(model))
        metrics.SWAPS.labels(name).inc()
        before = next((m for m in self.models if m.name == name), None)
        self._install({m.name: m for m in self.models} | {name: model})
        if before:
            self._keep(before)
        logger.info("%s answers now%s", model, f", in place of {before}" if before else "")

    def _install(self, models: Mapping[str, Model]) -> None:
        for model in set(models.values()).difference(self.models):
            if model.predictions:
                model.predictions.publish_reference()
        self.models = tuple(
            sorted(models.values(), key=lambda m: (m.bundle.manifest.n_labels, m.name))
        )
        self._named = {**models, **{str(model): model for model in self.models}}
        self._choose_default()
        for model in self.models:
            metrics.REFUSED.labels(model.name)  # 0 is exported, so that an increase is seen
            self._remember(model.name, model.version)

    def _scan(self) -> None:
        """Read which models and versions there are, and which model is the default.

        Raises:
            BundleError: the folder cannot be read.
        """
        root, only = self._serving.root, self._serving.only
        found = store.scan(root)
        self._found = {name: each for name, each in found.items() if not only or name in only}
        try:
            named = promotion.read(root)
        except BundleError as error:
            self._warn(promotion.FILE, f"{error}; the default stays as it is")
        else:
            self._warned.pop(promotion.FILE, None)
            self._default_name = named.default if named else None

    def _choose_default(self, settled: bool = False) -> None:
        """Chooses it, and logs what has changed.

        Args:
            settled: whether all models are loaded: until then, the one that the folder names may
                follow.
        """
        labels = {model.name: model.bundle.manifest.n_labels for model in self.models}
        name, reason = promotion.choose(labels, self._default_name, self._serving.only)
        before, self.default = self.default, self._named[name]
        if before and before.name != name:
            logger.info("%s is the default now, in place of %s: %s", name, before.name, reason)
        elif before and (not settled or reason == self._reason):
            return
        elif before and self._default_name and name != self._default_name:
            way_out = f"`labelcurve models promote NAME --models {self._serving.root}`"
            logger.warning("%s stays the default: %s; %s names another", name, reason, way_out)
        elif before:
            logger.info("%s stays the default: %s", name, reason)
        self._reason = reason

    def _discard(self, name: str) -> None:
        left = {model.name: model for model in self.models if model.name != name}
        gone = [model for model in self.models if model.name == name]
        if left:
            self._install(left)
        gone += [model for model in self._kept.values() if model.name == name]
        for model in gone:
            self._kept.pop(str(model), None)
            if model not in self.models:
                model.retire()

    def _keep(self, model: Model) -> None:
        if self._serving.keep == 0:
            model.retire()
            return
        self._kept[str(model)] = model
        while len(self._kept) > self._serving.keep:
            self._kept.popitem(last=False)[1].retire()

    async def _fetch(self, wanted: str) -> Model:
        async with self._one_at_a_time:
            found = self.find(wanted)  # it may have become the current one meanwhile
            if found:
                return found
            name, _, version = wanted.partition("@")
            if self._refusals.worth_trying(wanted, self._stamp(name, version)):
                try:
                    model = await asyncio.to_thread(self._open, name, version)
                except Exception as error:
                    self._refuse(name, version, error)
                else:
                    self._refusals.drop(wanted)
                    self._keep(model)
                    return model
            raise UnknownModel(f"{wanted} cannot be served: {self._refusals.get(wanted)}")

    def _exists(self, wanted: str) -> bool:
        name, at, version = wanted.partition("@")
        return (
            bool(at)
            and self._serving.keep > 0
            and name in self._named
            and version in self._there(name)
        )

    def _forget_deleted(self) -> None:
        for key, model in list(self._kept.items()):
            if model.version not in self._there(model.name):
                del self._kept[key]
                model.retire()
        there = {(n, v) for n, f in self._found.items() for v in (*f.versions, f.current) if v}
        self._refusals.keep({f"{name}@{version}" for name, version in there})

    def _refuse(self, name: str, version: str, error: Exception) -> None:
        self._refusals.note(name, version, self._stamp(name, version), error)

    def _stamp(self, name: str, version: str) -> tuple[int, ...] | None:
        return self._there(name).get(version)

    def _there(self, name: str) -> Mapping[str, tuple[int, ...]]:
        found = self._found.get(name)
        return found.versions if found else {}

    def versions(self, model: Model) -> list[str]:
        """Versions of its name that requests may ask for."""
        if self._serving.keep == 0:
            return [model.version]
        return sorted({model.version, *self._there(model.name)})

    def _warn(self, key: str, message: str) -> None:
        if self._warned.get(key) != message:
            self._warned[key] = message
            logger.warning("%s", message)
