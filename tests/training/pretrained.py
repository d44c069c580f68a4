"""Pretrainings of a small network on digits, whole, interrupted and continued."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from labelcurve.training.data.dataset import Data
from labelcurve.training.data.decoded.stored import Images
from labelcurve.training.learning.augment import Views
from labelcurve.training.learning.loop import Control
from labelcurve.training.learning.objectives import Contrastive, Objective, RelativePosition
from labelcurve.training.learning.pretrain import Result, pretrain
from labelcurve.training.learning.probe import Probe
from labelcurve.training.models.backbones import ConvNet, Network, ReferenceNet
from labelcurve.training.recipes import Pretraining
from labelcurve.training.runtime.checkpoint import Checkpoint
from labelcurve.training.runtime.device import FP32_CPU, to_device

PLAN = Pretraining(
    objective="contrastive",
    backbone="convnet",
    optimizer="muon",
    lr=0.02,
    lr_vectors=2e-3,
    momentum=0.9,
    warmup=0.1,
    decay=0.5,
    epochs=4,
    batch_size=64,
    n_views=2,
)
"""Five steps an epoch on `IMAGES` images: twenty steps."""


EXTENDABLE = replace(PLAN, extendable=True, decay=0.25)
"""Fifteen steps before the decay."""


IMAGES = 340


POSITIONS = Pretraining(
    objective="relative-position",
    backbone="reference",
    optimizer="adam",
    lr=5e-4,
    epochs=4,
    batch_size=64,
    n_views=2,
)


def parts(recipe: Pretraining = PLAN, seed: int = 0) -> tuple[Network, Objective]:
    torch.manual_seed(seed)
    if recipe.objective == "relative-position":
        reference = ReferenceNet(8)
        net = Network(reference, reference.dim, 10, torch.zeros(3), torch.ones(3))
        return net, RelativePosition(8, FP32_CPU)
    convnet = ConvNet((16, 32, 64))
    net = Network(convnet, convnet.dim, 10, torch.full((3,), 0.3), torch.full((3,), 0.35))
    views = Views(8, flip=False, brightness=0.2, hue=0, grey=0)
    return net, Contrastive(net.dim, views, recipe.n_views, recipe.temperature, FP32_CPU)


def images(digits: Data, n: int = IMAGES) -> Images:
    found: Images = digits.train.images[:n]
    return found


def pixels(digits: Data, n: int = IMAGES) -> Tensor:
    return to_device(digits.train.images[:n], FP32_CPU)


def judge(digits: Data) -> Probe:
    held = digits.train.take(np.arange(1_000, 1_200))
    return Probe(
        pixels(digits),
        digits.train.labels[:IMAGES],
        to_device(held.images, FP32_CPU),
        held.labels,
        FP32_CPU,
    )


def run(
    digits: Data,
    recipe: Pretraining = PLAN,
    seed: int = 0,
    n: int = IMAGES,
    probe: Probe | None = None,
    **options: Any,
) -> tuple[Network, Result, list[str]]:
    said: list[str] = []
    net, objective = parts(recipe)
    control = Control(**({"say": said.append} | options))
    result = pretrain(net, objective, images(digits, n), recipe, FP32_CPU, seed, probe, control)
    return net, result, said


def same_weights(a: Network, b: Network) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


class Counting(torch.nn.Module):
    """The objective that it wraps, and which images came."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.inner = objective
        self.batches: list[Tensor] = []

    def forward(
        self, network: Network, images: Tensor, generator: torch.Generator, whole: int | None = None
    ) -> Tensor:
        """The loss of the wrapped objective."""
        self.batches.append(images.clone())
        assert network.backbone.training
        return self.inner(network, images, generator, whole)


def at_every_step(path: Path, key: str = "") -> Checkpoint:
    return Checkpoint(path, {"images": key}, seconds=0)


class Stopped(Exception):
    """The point at which the test interrupts the run."""


class Fragile(Counting):
    """An objective that is interrupted after some steps."""

    def __init__(self, objective: Objective, after: int) -> None:
        super().__init__(objective)
        self.after = after

    def forward(
        self, network: Network, images: Tensor, generator: torch.Generator, whole: int | None = None
    ) -> Tensor:
        """The loss, until it is enough."""
        if len(self.batches) == self.after:
            raise Stopped
        return super().forward(network, images, generator, whole)


def interrupted(
    digits: Data, recipe: Pretraining, after: int, path: Path, key: str = "", **options: Any
) -> None:
    net, objective = parts(recipe)
    fragile = Fragile(objective, after)
    with pytest.raises(Stopped):
        pretrain(
            net,
            fragile,
            images(digits),
            recipe,
            FP32_CPU,
            0,
            control=Control(checkpoint=at_every_step(path, key), **options),
        )


def resumed(
    digits: Data, recipe: Pretraining, path: Path, key: str = ""
) -> tuple[Network, Result, list[str]]:
    # Another start, as in a new process: everything comes from the checkpoint.
    said: list[str] = []
    _, objective = parts(recipe, seed=9)
    net, _ = parts(recipe)
    torch.manual_seed(123)
    result = pretrain(
        net,
        Counting(objective),
        images(digits),
        recipe,
        FP32_CPU,
        0,
        control=Control(checkpoint=at_every_step(path, key), say=said.append),
    )
    return net, result, said
