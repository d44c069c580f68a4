"""Resolution of NAME or NAME@VERSION to a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from labelcurve.bundle import promotion
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
    raise unknown(bundles, wanted)


def default(root: Path, bundles: Sequence[Bundle], only: Sequence[str] = ()) -> tuple[str, str]:
    """Name of the default among the bundles of a folder, and the reason.

    Raises:
        BundleError: the folder names a default that is not there.
    """
    labels = {bundle.name: bundle.manifest.n_labels for bundle in bundles}
    return promotion.find(root, labels, only)


def unknown(bundles: Sequence[Bundle], wanted: str) -> UnknownModel:
    """The error for a model that does not exist; lists those that do."""
    names = [f"{bundle.name}@{bundle.version}" for bundle in bundles]
    return UnknownModel(
        f"no model {wanted[:80]!r}; there are {', '.join(names)} (the version may be left out)",
        models=names,
    )
