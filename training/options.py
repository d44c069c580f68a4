"""The options of `train`; the text below each becomes its help."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bundle.errors import LabelcurveError
from training.recipes import Preset

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
    """`reference` trains the reference experiment's network and fine-tuning under our protocol."""
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
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise LabelcurveError(
                f"--name {self.name!r}: allowed are letters, digits, dot, underscore and hyphen"
            )
        if self.seed < 0:
            raise LabelcurveError(f"--seed {self.seed}: allowed are 0 and more")
        if self.image_size is not None and not 8 <= self.image_size <= 1024:
            raise LabelcurveError(f"--image-size {self.image_size}: allowed are 8 to 1024 pixels")

    @property
    def fractions(self) -> tuple[float, ...]:
        """The fractions to train, each once, ascending."""
        return tuple(sorted(set(self.fraction or DEFAULT_FRACTIONS)))
