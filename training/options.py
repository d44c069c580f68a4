"""The options of `train`, `pretrain` and `quantize`; the text below each becomes its help."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bundle.errors import LabelcurveError
from training.recipes import TORCHVISION, Objective, Preset

DEFAULT_FRACTIONS = (0.1, 0.5, 1.0)


@dataclass(frozen=True)
class Options:
    """Fine-tunes a classifier on fractions of the labels and publishes one bundle a fraction.

    The last line on stdout is one JSON document; everything before it is for people.
    """

    fraction: tyro.conf.UseAppendAction[tuple[float, ...]] = ()
    """Share of the labels, above 0 and up to 1; repeat it for several models. Without it: 0.1, 0.5
    and 1.0."""
    data: str = "cifar10"
    """`cifar10`, `digits`, a folder of class folders (with or without train/ and test/), or a
    folder of Parquet files in the Hub's image layout."""
    out: Path = Path("models")
    """Folder that the bundles are published in."""
    name: str | None = None
    """First part of the bundles' names, NAME-10 and so on; by default the name of the data."""
    seed: int = 0
    """Of the subsets, the weights and the order of training."""
    preset: Preset = "default"
    """`reference` is the reference experiment: its network, pretext task and fine-tuning, under our
    protocol."""
    extractor: str = "auto"
    """What the network knows before it sees a label. `auto`: the extractor that ships with
    Labelcurve where it was made from these images (CIFAR-10), else the one that `pretrain` left in
    the cache, else a short `pretrain` first. `none`: nothing. Or a file that `pretrain` wrote.
    `torchvision:NAME`, such as torchvision:resnet18: that network and its ImageNet weights, which
    are downloaded; `torchvision:NAME=FILE`: its state dict from a file."""
    no_unlabelled: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Below a fraction of 1, do not learn from the other training images (without their labels)."""
    max_minutes: float | None = None
    """The whole command ends after so many minutes at the latest, whatever the machine, and each
    learning rate comes to its end. Such a run is not repeatable bit by bit."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto` takes an NVIDIA GPU when there is one, else the CPU, and prints its reason."""
    epochs: int | None = None
    """At most so many epochs, instead of the recipe's."""
    image_size: int | None = None
    """Side of the images in pixels; by default 32, for digits 16."""
    no_flip: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Do not mirror images while training: for text, digits and whatever has a left and a right."""
    no_test: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Leave the test split unread: for tuning."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the labels per class and fraction, and stop."""
    self_test: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Run one training step, print what it really ran on, and stop; no data is read. The exit
    status is 1 where that is not what `--device` says."""
    skip_unreadable: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on without images that cannot be read, and count them."""
    cache: Path | None = None
    """Folder of downloads and decoded pixels; by default the user's cache folder,
    ~/.cache/labelcurve on Linux."""
    clear_cache: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Remove the decoded pixels from the cache first."""

    def __post_init__(self) -> None:
        """Checks what no type can say.

        Raises:
            LabelcurveError: names the flag, the value and what is allowed.
        """
        for fraction in self.fraction:
            if not 0 < fraction <= 1:
                raise LabelcurveError(
                    f"--fraction {fraction:g}: allowed are values above 0 and up to 1 (0.1 is 10 %)"
                )
        if self.epochs is not None and self.epochs < 1:
            raise LabelcurveError(f"--epochs {self.epochs}: allowed are 1 and more")
        _check_minutes(self.max_minutes)
        if self.epochs is not None and self.max_minutes is not None:
            raise LabelcurveError("--epochs and --max-minutes exclude each other: give one of them")
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise LabelcurveError(
                f"--name {self.name!r}: allowed are letters, digits, dot, underscore and hyphen"
            )
        if re.match(rf"{TORCHVISION}(?!\w+(=|$))", self.extractor):
            raise LabelcurveError(
                f"--extractor {self.extractor}: allowed are {TORCHVISION}NAME and "
                f"{TORCHVISION}NAME=FILE, such as {TORCHVISION}resnet18"
            )
        if self.preset == "reference" and self.extractor.startswith(TORCHVISION):
            raise LabelcurveError(
                f"--extractor {self.extractor}: --preset reference has a network of its own; "
                "leave one of the two out"
            )
        _check_common(self.seed, self.image_size)

    @property
    def fractions(self) -> tuple[float, ...]:
        """The fractions to train, each once, ascending."""
        return tuple(sorted(set(self.fraction or DEFAULT_FRACTIONS)))


@dataclass(frozen=True)
class PretrainOptions:
    """Learns a feature extractor from the training images without their labels.

    `train` on the same images finds it. The last line on stdout is one JSON document.
    """

    data: str = "cifar10"
    """As for `train`: the training images are used, their labels only to judge the result. With
    `--unlabelled` any folder of images."""
    unlabelled: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """`--data` is a folder of images, at any depth, without classes."""
    out: Path | None = None
    """File to write (.safetensors), with a card beside it (.md); by default one in the cache, where
    `train` looks."""
    objective: Objective = "contrastive"
    """`relative-position` is the reference experiment's, for `train --preset reference`."""
    epochs: float | None = None
    """Passes over the images, instead of the recipe's."""
    max_minutes: float | None = None
    """End after so many minutes instead, with the learning rate at its end."""
    start: Path | None = None
    """Begin with the weights of this extractor."""
    seed: int = 0
    """Of the weights, the order and the views."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto` takes an NVIDIA GPU when there is one, else the CPU, and prints its reason."""
    image_size: int | None = None
    """Side of the images in pixels; by default 32, for digits 16."""
    no_flip: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Do not mirror images: for text, digits and whatever has a left and a right."""
    fresh: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Start over where an interrupted run left a checkpoint; without it the run goes on."""
    skip_unreadable: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on without images that cannot be read, and count them."""
    cache: Path | None = None
    """Folder of downloads, decoded pixels and extractors; by default the user's cache folder,
    ~/.cache/labelcurve on Linux."""
    clear_cache: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Remove the decoded pixels from the cache first."""

    def __post_init__(self) -> None:
        """Checks what no type can say.

        Raises:
            LabelcurveError: names the flag, the value and what is allowed.
        """
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise LabelcurveError(f"--epochs {self.epochs:g}: allowed are values above 0")
        _check_minutes(self.max_minutes)
        if self.epochs is not None and self.max_minutes is not None:
            raise LabelcurveError("--epochs and --max-minutes exclude each other: give one of them")
        if self.out is not None and self.out.suffix != ".safetensors":
            raise LabelcurveError(f"--out {self.out}: allowed is a file name in .safetensors")
        _check_common(self.seed, self.image_size)


@dataclass(frozen=True)
class QuantizeOptions:
    """Adds an INT8 graph for CPUs, or an fp16 graph for GPUs, to bundles.

    Ranges come from training images of the model's own fraction. A graph that loses more than 0.3
    points of accuracy on its validation images is refused, and so is INT8 that is not faster than
    fp32 here. Each bundle becomes a new version of its name, with the fp32 graph in it;
    `serve --precision` says which of them answers.
    """

    models: Path = Path("models")
    """Folder of bundles, as `train --out` wrote it."""
    data: str = "cifar10"
    """What the models were trained on, as for `train`."""
    precision: Literal["int8", "fp16"] = "int8"
    """Number format of the added graph."""
    only: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only this model; may be repeated."""
    skip_unreadable: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """As for `train`."""
    cache: Path | None = None
    """As for `train`."""


def _check_minutes(minutes: float | None) -> None:
    if minutes is not None and not 0 < minutes < math.inf:
        raise LabelcurveError(f"--max-minutes {minutes:g}: allowed are values above 0")


def _check_common(seed: int, image_size: int | None) -> None:
    if seed < 0:
        raise LabelcurveError(f"--seed {seed}: allowed are 0 and more")
    if image_size is not None and not 8 <= image_size <= 1024:
        raise LabelcurveError(f"--image-size {image_size}: allowed are 8 to 1024 pixels")
