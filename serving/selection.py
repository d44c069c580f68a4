"""Which model NAME or NAME@VERSION means."""

from __future__ import annotations

from collections.abc import Sequence

from bundle.store import Bundle
from serving.errors import UnknownModel


def pick(bundles: Sequence[Bundle], wanted: str | None) -> int:
    """The index of the bundle that `wanted` (NAME or NAME@VERSION) means.

    None means the one with the most labels.

    Raises:
        UnknownModel: none is of that name and version; lists those that exist.
    """
    if wanted is None:
        most = max(range(len(bundles)), key=lambda i: (bundles[i].manifest.n_labels_train, -i))
        return most
    name, _, version = wanted.partition("@")
    for index, bundle in enumerate(bundles):
        if bundle.name == name and version in ("", bundle.version):
            return index
    raise unknown(bundles, wanted)


def unknown(bundles: Sequence[Bundle], wanted: str) -> UnknownModel:
    """There is no such model; lists those that exist."""
    names = [f"{bundle.name}@{bundle.version}" for bundle in bundles]
    return UnknownModel(
        f"no model {wanted[:80]!r}; there are {', '.join(names)} (the version may be left out)",
        models=names,
    )
