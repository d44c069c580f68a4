"""The options of `suggest`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from labelcurve.bundle.options import Within, check
from labelcurve.training.extractors.options import EmbeddingOptions, Flag


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """Pool, number of images, labels and output."""

    pool: Path
    """Folder of images without labels, at any depth. Images that --data labels are skipped."""
    n: Annotated[int, Within(1)] = 200
    """Images to suggest."""
    data: str | None = None
    """The labels that there are, as for `train`; none for a first round."""
    models: Path | None = None
    """Folder that `train --out` wrote: the model with the most labels says what it is unsure of,
    in place of a classifier on the labels of --data, whose images are still skipped."""
    out: Path = Path("suggested")
    """Folder to write suggest.csv, index.html and images/ to; it must not exist."""
    skip_unreadable: Flag = False
    """Go on without images that cannot be read, and count them."""


@dataclass(frozen=True, kw_only=True)
class SuggestOptions(EmbeddingOptions, _Pool):
    """Suggests which images to label next, as a table and as a folder of links with a gallery.

    Without labels, or with fewer than 10 a class, it chooses typical images that differ from one
    another and from those that have a label; with more, images that a classifier on the labels is
    unsure of. A fifth is drawn at random, to serve as an unbiased test set.
    """

    def __post_init__(self) -> None:
        """Checks what the types cannot express.

        Raises:
            LabelcurveError: names the flag, the value and what is allowed.
        """
        check(self)


def parse(arguments: Sequence[str]) -> SuggestOptions:
    """The options of `suggest`, from the arguments after its name."""
    return tyro.cli(SuggestOptions, prog="labelcurve suggest", args=arguments)
