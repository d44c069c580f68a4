"""The images of a command that embeds them, their extractor and their frozen features."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.sources import Selection
from labelcurve.training.embedding_options import AuditOptions, EmbeddingOptions, PlanOptions
from labelcurve.training.extractors import choice, photos
from labelcurve.training.extractors.choice import Wanted
from labelcurve.training.forecast.head import Rows
from labelcurve.training.models.backbones import Network, build
from labelcurve.training.models.extractor import Extractor
from labelcurve.training.models.features import features
from labelcurve.training.recipes import LIBRARIES
from labelcurve.training.runtime.console import Bar, say
from labelcurve.training.runtime.device import Device, choose

PRETRAINING = 300.0
"""Maximum seconds to train an extractor in, where there is none."""


Chosen = TypeVar("Chosen", bound=EmbeddingOptions)
Labelled = TypeVar("Labelled", PlanOptions, AuditOptions)


def load_labelled(options: Labelled, skip_unreadable: bool) -> tuple[Data, Labelled]:
    """The labelled images and those of `--unlabelled`, as `load`."""
    selection = Selection(options.data, options.layout, options.label_column, options.unlabelled)
    images, options = load(selection, options, skip_unreadable)
    if options.unlabelled is not None and options.extractor != "auto":
        say(f"--unlabelled is not used: --extractor {options.extractor} learns nothing from it")
    say(f"data: {images.name}, {images.n_labels:,} labels, {images.size} px")
    return images, options


def load(selection: Selection, options: Chosen, skip_unreadable: bool) -> tuple[Data, Chosen]:
    """The images, and the options with the extractor that suits them."""
    settled = photos.Settled(options.extractor, say)
    images = dataset.load(
        selection,
        size=options.image_size,
        cache=options.cache,
        skip_unreadable=skip_unreadable,
        say=say,
        choose_size=settled.choose_size,
    )
    settled.given_size(images.size)
    return images, replace(options, extractor=settled.extractor)


def obtain(
    options: EmbeddingOptions, images: Data, device: Device, *, flip: bool
) -> Extractor | None:
    """Returns the extractor of `--extractor`; a new one is trained on all images, labelled or not.

    Args:
        flip: whether mirrored images keep their class.
    """
    wanted = Wanted(
        backbone="convnet",
        flip=flip and not options.no_flip,
        cache=options.cache or dataset.default_cache(),
        seconds=PRETRAINING,
    )
    return choice.obtain(options.extractor, images, wanted, device)


@dataclass(frozen=True)
class Embedded:
    """Labelled images, embedded."""

    images: Data
    extractor: Extractor | None
    parts: tuple[Rows, Rows]
    """Training and test images, float32 [N, D] each."""
    seconds: float

    @property
    def source(self) -> str:
        """Source of the embeddings, for a page."""
        return "an untrained network" if self.extractor is None else self.extractor.path.name


def embed_labelled(options: PlanOptions | AuditOptions, images: Data) -> Embedded:
    """Embeds the labelled images with the extractor of `--extractor`, on `--device`."""
    device = choose(options.device)
    extractor = obtain(options, images, device, flip=options.data != "digits")
    images = images.labelled()
    began = time.monotonic()
    parts = embedding(images, extractor, options.extractor, device, options.cache)
    return Embedded(images, extractor, parts, time.monotonic() - began)


def network_for(images: Data, extractor: Extractor | None, name: str) -> Network:
    """The network that embeds the images.

    Args:
        extractor: whose weights the network has; None leaves it untrained, which is said.
        name: value of `--extractor`, which may name a network of a library.
    """
    torch.manual_seed(0)
    backbone = name.partition("=")[0] if name.startswith(LIBRARIES) else "convnet"
    network = build(backbone, images.train.images, max(1, len(images.class_names)))
    if extractor is None:
        say("WARNING: no extractor: the features are those of an untrained network")
    else:
        extractor.load_into(network)
    return network


def embedding(
    images: Data, extractor: Extractor | None, name: str, device: Device, cache: Path | None
) -> tuple[Rows, Rows]:
    """Embeds the training and the test images, float32 [N, D] each; see `network_for`."""
    network = network_for(images, extractor, name)
    version = f"untrained-{images.hash[:12]}" if extractor is None else extractor.version
    with Bar("embedding") as bar:
        train, test = (
            features(network, split, version, device, cache=cache, on_progress=bar.update)
            if len(split)
            else np.zeros((0, network.dim), np.float32)
            for split in (images.train, images.test)
        )
    return train, test
