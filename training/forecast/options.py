"""The options of `plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated

import tyro

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.options import Within, check, shown
from labelcurve.training.extractors.options import EmbeddingOptions, Flag

LEAST_GAIN = 2.0
"""Points of accuracy from which more labels pay, by default."""


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
        """Checks what the types cannot express.

        Raises:
            LabelcurveError: names the flag, the value and what is allowed.
        """
        check(self)
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


def parse(arguments: Sequence[str]) -> PlanOptions:
    """The options of `plan`, from the arguments after its name."""
    return tyro.cli(PlanOptions, prog="labelcurve plan", args=arguments)
