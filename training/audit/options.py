"""The options of `audit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.options import Within, check
from labelcurve.training.extractors.options import EmbeddingOptions


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
        """Checks what the types cannot express.

        Raises:
            LabelcurveError: names the flag, the value and what is allowed.
        """
        check(self)
        if self.out.suffix != ".csv" or self.out.is_dir():
            raise LabelcurveError(f"--out {self.out}: allowed is a file name in .csv")

    @property
    def page(self) -> Path:
        """The page next to the table."""
        return self.out.with_suffix(".html")


def parse(arguments: Sequence[str]) -> AuditOptions:
    """The options of `audit`, from the arguments after its name."""
    return tyro.cli(AuditOptions, prog="labelcurve audit", args=arguments)
