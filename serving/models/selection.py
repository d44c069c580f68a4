"""Resolution of NAME or NAME@VERSION to a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from labelcurve.bundle import promotion, store
from labelcurve.bundle.store import Bundle
from labelcurve.serving.errors import UnknownModel


def pick(bundles: Sequence[Bundle], wanted: str) -> int:
    """The index of the bundle that `wanted` (NAME or NAME@VERSION) means.

    Raises:
        UnknownModel: none has that name and version; lists those that exist.
    """
    name, _, version = wanted.partition("@")
    for index, bundle in enumerate(bundles):
        if bundle.name == name and version in ("", bundle.version):
            return index
    raise unknown([f"{bundle.name}@{bundle.version}" for bundle in bundles], wanted)


def read(root: Path, wanted: str | None = None) -> Bundle:
    """The bundle of a folder that `wanted` (NAME or NAME@VERSION) means; without it, the default.

    The graphs of all others are not read: a damaged one does no harm.

    Raises:
        BundleError: the folder holds no bundle, this one is damaged, or the default is not there.
        UnknownModel: there is none of that name and version; lists those that exist.
    """
    names = store.names(root)  # explains a folder without models
    there = store.scan(root)
    wanted = wanted or _default_name(root, names, there)
    name, _, version = wanted.partition("@")
    found = there.get(name, store.Found(None, {}))
    if not (found.error or version in found.versions or (found.current and not version)):
        known = [f"{each}@{there[each].current}" for each in names]
        raise unknown([f"{name}@{each}" for each in found.versions] or known, wanted)
    return store.read(root, name, version or None)


def _default_name(root: Path, names: Sequence[str], there: Mapping[str, store.Found]) -> str:
    named = promotion.read(root)
    if named and named.default in names:
        return named.default
    folders = {name: root / name / (there[name].current or store.CURRENT) for name in names}
    labels = {name: store.read_manifest(folder).n_labels for name, folder in folders.items()}
    return promotion.find(root, labels)[0]


def default(root: Path, bundles: Sequence[Bundle], only: Sequence[str] = ()) -> tuple[str, str]:
    """Name of the default among the bundles of a folder, and the reason.

    Raises:
        BundleError: the folder names a default that is not there.
    """
    labels = {bundle.name: bundle.manifest.n_labels for bundle in bundles}
    return promotion.find(root, labels, only)


def unknown(there: Sequence[str], wanted: str) -> UnknownModel:
    """The error for a model that does not exist; lists those that do, as NAME@VERSION."""
    return UnknownModel(
        f"no model {wanted[:80]!r}; there are {', '.join(there)} (the version may be left out)",
        models=list(there),
    )
