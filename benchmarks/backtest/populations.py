"""Embedded data sets to draw labels from, and variants of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from labelcurve.training.data import dataset
from labelcurve.training.data.source import Index
from labelcurve.training.extractors import choice, embedded
from labelcurve.training.extractors.choice import Wanted
from labelcurve.training.forecast.head import Rows
from labelcurve.training.runtime.device import choose

LIVING = (2, 3, 4, 5, 6, 7)
"""Classes of CIFAR-10 that are animals."""
CAT, DOG = 3, 5
NOISE = 0.2
TAIL = 0.75
"""Ratio of the sizes of successive classes in the long-tailed variant."""


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
    """Embed a data set as `plan` does.

    Args:
        name: of the population.
        data: as for `plan`; a given test split is not used.
        extractor: as for `plan`.
        cache: folder of decoded pixels and features.
        size: side of the images in pixels.
        most: images to embed, at most.
    """
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


def derived(cifar10: Population) -> list[Population]:
    """Derive CIFAR-10 with six, two easy and two hard classes, noisy labels, and long-tailed."""
    animals = np.isin(cifar10.labels, LIVING)
    pets = np.isin(cifar10.labels, (CAT, DOG))
    random = np.random.default_rng(0)
    noisy = _noisy(cifar10.labels, random)
    tail = random.random(len(animals)) < TAIL**cifar10.labels

    def made(name: str, labels: Index, rows: Callable[[Rows], Rows] = lambda x: x) -> Population:
        return Population(f"cifar10-{name}", rows(cifar10.features), labels)

    six = np.searchsorted(LIVING, cifar10.labels[animals])
    return [
        made("animals", six, lambda x: x[animals]),
        made("living-or-not", animals.astype(np.int64)),
        made("cat-or-dog", (cifar10.labels[pets] == DOG).astype(np.int64), lambda x: x[pets]),
        made("noisy-labels", noisy),
        made("long-tail", cifar10.labels[tail], lambda x: x[tail]),
    ]


def semi_supervised(trashnet: Population, cifar10: Population) -> list[Population]:
    """Photos, with six classes, and with noisy labels; the unlabelled photos are used as well."""
    animals = np.isin(cifar10.labels, LIVING)
    six = np.searchsorted(LIVING, cifar10.labels[animals])
    found = [
        trashnet,
        cifar10,
        Population(f"{cifar10.name}-animals", cifar10.features[animals], six),
    ]
    found += [
        replace(one, name=f"{one.name}-noisy-labels", labels=_noisy(one.labels))
        for one in (trashnet, cifar10)
    ]
    return [replace(one, pool=True) for one in found]


def _noisy(labels: Index, random: np.random.Generator | None = None) -> Index:
    random = np.random.default_rng(0) if random is None else random
    wrong = random.random(len(labels)) < NOISE
    others = random.integers(0, int(labels.max()) + 1, len(labels))
    found: Index = np.where(wrong, others, labels)
    return found
