"""Embedded data sets to draw labels from, and variants of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import default_cache
from labelcurve.training.data.source import Index
from labelcurve.training.extractors import choice, embedded
from labelcurve.training.extractors.choice import Wanted
from labelcurve.training.forecast.head import Rows
from labelcurve.training.runtime.device import choose

LIVING = (2, 3, 4, 5, 6, 7)
"""Classes of CIFAR-10 that are animals."""
PETS = (3, 5)
"""Cat and dog."""
NOISE = 0.2
TAIL = 0.75
"""Ratio of the sizes of successive classes in the long-tailed variant."""


@dataclass(frozen=True)
class Sources:
    """Sources of the images and their extractors."""

    cifar10: str = "cifar10"
    """CIFAR-10, as for `train --data`; its first training images, with the extractor that ships
    with Labelcurve."""
    trashnet: str | None = None
    """Folder of TrashNet; without it this data set is left out."""
    trashnet_extractor: str = "auto"
    """As for `train --extractor`, at 224 pixels."""
    cache: Path | None = None
    """As for `train`."""


@dataclass(frozen=True)
class Population:
    """A data set that labels are drawn from."""

    name: str
    features: Rows
    """[N, D]"""
    labels: Index
    """[N]"""
    pool: bool = False
    """Whether the truth is measured with unlabelled images in training, as in `train`."""


def embed(
    name: str, data: str, extractor: str, cache: Path, *, size: int | None, most: int
) -> Population:
    """Embed at most `most` images as `plan` does; a given test split is not used."""
    images = dataset.load(data, size=size, cache=cache)
    device = choose("cpu")
    wanted = Wanted(backbone="convnet", flip=data != "digits", cache=cache)
    found = choice.obtain(extractor, images, wanted, device)
    if images.test_given:
        rows = np.arange(min(most, len(images.train)))
        images = replace(images, train=images.train.take(rows), test=images.test.take(rows[:0]))
    train, test = embedded.embedding(images, found, extractor, device, cache)
    labels = np.concatenate([images.train.labels, images.test.labels])
    return Population(name, np.concatenate([train, test]), labels)


def populations(sources: Sources, most: int = 20_000) -> list[Population]:
    """At most `most` images of CIFAR-10, of digits (by an untrained network) and of TrashNet."""
    cache = sources.cache or default_cache()
    found = [
        embed("cifar10", sources.cifar10, "auto", cache, size=32, most=most),
        embed("digits", "digits", "none", cache, size=None, most=most),
    ]
    if sources.trashnet is not None:
        extractor = sources.trashnet_extractor
        found.append(embed("trashnet", sources.trashnet, extractor, cache, size=224, most=most))
    return found


def subset(whole: Population, name: str, classes: Sequence[int]) -> Population:
    """The images of some classes, ascending, which are numbered from 0."""
    rows = np.isin(whole.labels, classes)
    labels = np.searchsorted(classes, whole.labels[rows])
    return Population(f"{whole.name}-{name}", whole.features[rows], labels)


def derived(cifar10: Population) -> list[Population]:
    """Derive CIFAR-10 with six, two easy and two hard classes, noisy labels, and long-tailed."""
    random = np.random.default_rng(0)
    noisy = _noisy(cifar10.labels, random)
    tail = random.random(len(noisy)) < TAIL**cifar10.labels
    living = np.isin(cifar10.labels, LIVING).astype(np.int64)
    return [
        subset(cifar10, "animals", LIVING),
        replace(cifar10, name="cifar10-living-or-not", labels=living),
        subset(cifar10, "cat-or-dog", PETS),
        replace(cifar10, name="cifar10-noisy-labels", labels=noisy),
        Population("cifar10-long-tail", cifar10.features[tail], cifar10.labels[tail]),
    ]


def semi_supervised(trashnet: Population, cifar10: Population) -> list[Population]:
    """Photos, with six classes, and with noisy labels; the unlabelled photos are used as well."""
    noisy = []
    for one in (trashnet, cifar10):
        labels = _noisy(one.labels, np.random.default_rng(0))
        noisy.append(replace(one, name=f"{one.name}-noisy-labels", labels=labels))
    found = [trashnet, cifar10, subset(cifar10, "animals", LIVING), *noisy]
    return [replace(one, pool=True) for one in found]


def _noisy(labels: Index, random: np.random.Generator) -> Index:
    wrong = random.random(len(labels)) < NOISE
    others = random.integers(0, int(labels.max()) + 1, len(labels))
    found: Index = np.where(wrong, others, labels)
    return found
