"""Options of the commands that embed images with an extractor: `plan`, `audit` and `suggest`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from labelcurve.bundle.options import Within
from labelcurve.training.data.formats.split_names import Layout

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """The images, their extractor and the device, as for `train`."""

    extractor: str = "auto"
    """As for `train`: the network whose features tell images apart."""
    layout: Layout = "auto"
    """As for `train`, of --data."""
    label_column: str | None = None
    """As for `train`, of --data."""
    image_size: int | None = None
    """As for `train`."""
    cache: Path | None = None
    """As for `train`."""
    no_flip: Flag = False
    """As for `train`: only where an extractor has to be trained first."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """As for `train`."""
    seed: Annotated[int, Within(0)] = 0
    """Seed of all random choices: folds, subsets, clusters, random shares."""
