"""The options of the commands that embed images with an extractor: `plan`, `suggest`, `audit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Literal

import tyro

from labelcurve.bundle.command import Within, check, shown
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.data.formats.split_names import Layout
from labelcurve.training.options import LAST_SEED, Flag, Side

LEAST_GAIN = 2.0
"""Points of accuracy from which more labels pay, by default."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """The images, their extractor and the device, as for `train`."""

    extractor: str = "auto"
    """As for `train`: the network whose features tell images apart."""
    layout: Layout = "auto"
    """As for `train`, of --data."""
    label_column: str | None = None
    """As for `train`, of --data."""
    image_size: Side = None
    """As for `train`."""
    cache: Path | None = None
    """As for `train`."""
    no_flip: Flag = False
    """As for `train`: only where an extractor has to be trained first."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """As for `train`."""
    seed: Annotated[int, Within(0, LAST_SEED)] = 0
    """Seed of all random choices: folds, subsets, clusters, random shares."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class _Question:
    """Question and output."""

    data: str
    """The labelled images, as for `train`. Without a test split each label is test in turn."""
    more: Annotated[int, Within(1)]
    """Labels that could be bought."""
    unlabelled: Path | None = None
    """Folder of further unlabelled images, also used where an extractor has to be trained first."""
    price_per_label: Annotated[float | None, Within(0, above=True)] = None
    """Cost of a label, in any currency."""
    value_per_point: Annotated[float | None, Within(0, above=True)] = None
    """Value of a point of accuracy, in the same currency: labels pay where the gain is worth
    more than their price. Instead of --least-gain."""
    least_gain: Annotated[float | None, Within(0, 100, note="points (2 is two points)")] = None
    """Points of accuracy from which more labels pay; 2 where no value is given either."""
    target: Annotated[float | None, Within(0, 1, above=True, below=True, note="(0.9 is 90 %)")] = (
        None
    )
    """An accuracy, such as 0.9, to estimate the number of labels for."""
    skip_unreadable: Flag = False
    """Go on without images that cannot be read, and count them."""
    out: Path = Path("plan.html")
    """Page to write."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions(EmbeddingOptions, _Question):
    """Answers whether more labels pay: yes, no, or cannot tell and what would settle it.

    Measures a learning curve on the labels that there are, with a linear classifier on frozen
    features, and forecasts it. Writes a page with the answer, the curve and three sentences; the
    result is also one JSON document.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value_per_point is not None and self.price_per_label is None:
            raise LabelcurveError("--value-per-point needs --price-per-label, too")
        if self.value_per_point is not None and self.least_gain is not None:
            raise LabelcurveError(
                f"--value-per-point {shown(self.value_per_point)} and --least-gain "
                f"{shown(self.least_gain)} both say from which gain labels pay: give one of them"
            )
        if not isfinite(self.bar):
            raise LabelcurveError(
                f"--price-per-label {shown(self.price_per_label or 0)} and --value-per-point "
                f"{shown(self.value_per_point or 0)}: labels would pay from no finite gain"
            )
        if self.out.suffix not in (".html", ".htm") or self.out.is_dir():
            raise LabelcurveError(f"--out {self.out}: allowed is a file name in .html")

    @property
    def bar(self) -> float:
        """Points of accuracy from which more labels pay."""
        if self.value_per_point is None or self.price_per_label is None:
            return LEAST_GAIN if self.least_gain is None else self.least_gain
        return self.more * self.price_per_label / self.value_per_point


def parse_plan(arguments: Sequence[str]) -> PlanOptions:
    """The options of `plan`."""
    return tyro.cli(PlanOptions, prog="labelcurve plan", args=arguments)


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


def parse_suggest(arguments: Sequence[str]) -> SuggestOptions:
    """The options of `suggest`."""
    return tyro.cli(SuggestOptions, prog="labelcurve suggest", args=arguments)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Input and output."""

    data: str
    """The labelled images, as for `train`."""
    out: Path = Path("audit.csv")
    """Table to write; the page is written next to it, with the same name and the ending .html."""
    shown: Annotated[int, Within(0, 2000)] = 200
    """Images on the page, at most; the table has all."""
    unlabelled: Path | None = None
    """Folder of further unlabelled images, also used where an extractor has to be trained first."""


@dataclass(frozen=True, kw_only=True)
class AuditOptions(EmbeddingOptions, _Table):
    """Lists the images whose labels are doubtful, and those that are repeated, empty or broken.

    Writes a table, most doubtful first, and a page with the images in the same order.
    `labelcurve train` takes the table: --drop leaves its images out, --relabel gives them the
    labels that it suggests. Remove or edit lines before.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.suffix != ".csv" or self.out.is_dir():
            raise LabelcurveError(f"--out {self.out}: allowed is a file name in .csv")

    @property
    def page(self) -> Path:
        """The page next to the table."""
        return self.out.with_suffix(".html")


def parse_audit(arguments: Sequence[str]) -> AuditOptions:
    """The options of `audit`."""
    return tyro.cli(AuditOptions, prog="labelcurve audit", args=arguments)
