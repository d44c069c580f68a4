"""How much longer pretraining improves an extractor: k-NN and linear probe over core hours.

`python -m benchmarks.study.extractors FILE...` reads extractors that `labelcurve pretrain` wrote,
such as those of one `--trunk`, and adds a row for each to `benchmarks/results/extractors.json`. The
figures are those of their cards, on held-out training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from labelcurve.benchmarks.harness.provenance import parsed
from labelcurve.benchmarks.record import Record
from labelcurve.benchmarks.study import rows
from labelcurve.bundle import command, files
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.models import extractor
from labelcurve.training.models.extractor import Extractor

RESULT = Path(__file__).resolve().parents[1] / "results" / "extractors.json"


class Row(Record):
    """An extractor."""

    version: str
    dataset: str
    objective: str
    hours: float
    """Training time of all runs, without evaluation."""
    views_seen: int
    n_images: int
    knn: float
    probe: float
    n_held_out: int
    hardware: str
    """Of the last run, with the number of threads."""
    precision: str
    git_commit: str | None


class Extractors(Record):
    """All rows, by the images seen."""

    schema_version: Literal[1] = 1
    rows: tuple[Row, ...]


@dataclass
class Options:
    """Adds extractors to the table of docs/results.md."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Extractors that `labelcurve pretrain` wrote."""
    out: Path = RESULT
    """JSON file of the rows, to which new ones are added."""


def row(found: Extractor) -> Row:
    """The row of an extractor.

    Raises:
        LabelcurveError: it was not evaluated, for lack of labels or of time.
    """
    card = found.card
    if card.knn is None or card.probe is None:
        raise LabelcurveError(
            f"{found.path} has no k-NN accuracy and no linear probe: `pretrain` evaluates an "
            "extractor where there are labels, and time left (--max-minutes)"
        )
    of_card = ("dataset", "objective", "n_images", "knn", "probe", "n_held_out")
    return Row(
        **{name: getattr(card, name) for name in of_card},
        **{name: getattr(card.runs[-1], name) for name in ("hardware", "precision", "git_commit")},
        version=found.version,
        hours=round(card.seconds / 3600, 3),
        views_seen=sum(run.views_seen for run in card.runs),
    )


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.study.extractors`."""
    options = parsed(Options, arguments)
    if not options.files:
        raise LabelcurveError("FILE: name one extractor or more, as `pretrain --out` wrote them")
    known = rows.read_as(options.out, Extractors).rows if options.out.exists() else ()
    found = {each.version: each for each in known}
    for path in options.files:
        new = row(extractor.read(path, "FILE"))
        found[new.version] = new
        print(f"{path}: {new.hours:.2f} h, k-NN {new.knn:.4f}, linear probe {new.probe:.4f}")
    result = Extractors(rows=tuple(sorted(found.values(), key=lambda each: each.views_seen)))
    files.write_out(options.out, f"{result.model_dump_json(indent=1)}\n")


if __name__ == "__main__":
    command.enter(main, extra="train")
