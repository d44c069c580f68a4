"""The data sets that labels are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labelcurve.benchmarks.backtest.populations import Population, embed
from labelcurve.training.data.dataset import default_cache


@dataclass(frozen=True)
class Sources:
    """Sources of the images and their extractors."""

    cifar10: str = "cifar10"
    """CIFAR-10, as for `train --data`; its first 20,000 training images, with the extractor that
    ships with Labelcurve."""
    trashnet: str | None = None
    """Folder of TrashNet; without it this data set is left out."""
    trashnet_extractor: str = "auto"
    """As for `train --extractor`, at 224 pixels."""
    cache: Path | None = None
    """As for `train`."""


def populations(sources: Sources) -> Sequence[Population]:
    """Embedded images of CIFAR-10, TrashNet and digits (those by an untrained network)."""
    cache, most = sources.cache or default_cache(), 20_000
    found = [
        embed("cifar10", sources.cifar10, "auto", cache, size=32, most=most),
        embed("digits", "digits", "none", cache, size=None, most=most),
    ]
    if sources.trashnet is not None:
        extractor = sources.trashnet_extractor
        found.append(embed("trashnet", sources.trashnet, extractor, cache, size=224, most=most))
    return found
