"""The schema of `study.json`, one row per trained model, and statistics over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from labelcurve.benchmarks.record import Record
from labelcurve.benchmarks.report.tables import share
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.text import duration

_Schema = TypeVar("_Schema", bound=BaseModel)


class Row(Record):
    """A model trained for the study, evaluated on the official test images."""

    variant: str
    """A name in `benchmarks.study.run.VARIANTS`."""
    fraction: float
    seed: int
    bundle: str
    version: str
    n_labels_train: int
    n_labels_val: int
    n_unlabelled: int
    extractor: str | None
    """Objective of the extractor; None for random weights."""
    accuracy: float
    f1: float
    precision: float
    recall: float
    """On test; the last three are weighted by class frequency."""
    mirrored: float | None = None
    """Accuracy on test of the mean over an image and its mirror image, as with `train --mirror`;
    None where images are not mirrored in training, or where it was not measured."""
    n_test: int
    val_accuracy: float
    epochs: int
    best_epoch: int
    train_seconds: float
    pretraining_seconds: float | None
    """Training time of the extractor, on the machine that made it."""
    shared: bool
    """The machine did other work meanwhile: the seconds do not measure the training."""
    hardware: str
    """With the number of threads."""
    arithmetic: str | None
    """fp32 or bf16; None where it was not recorded."""
    started: str
    """ISO 8601, UTC."""
    git_commit: str | None
    packages: dict[str, str]
    command: str
    """The command that reproduces the row."""


class Study(Record):
    """All rows so far."""

    schema_version: Literal[1] = 1
    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    """Commands of the rows not trained yet."""

    def groups(self) -> list[list[Row]]:
        """Group the rows that differ only in the seed, in the order of the file."""
        found: dict[tuple[str, float], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row.variant, row.fraction), []).append(row)
        return list(found.values())

    def group(self, variant: str, fraction: float) -> list[Row]:
        """Return the rows of one variant at one fraction, by seed."""
        return [row for row in self.rows if (row.variant, row.fraction) == (variant, fraction)]

    def fractions(self, *variants: str) -> list[float]:
        """Return the fractions at which any of the variants was trained, ascending."""
        return sorted({row.fraction for row in self.rows if row.variant in variants})


def mean(rows: Sequence[Row], field: str) -> float:
    """Mean of a field over seeds."""
    return float(np.mean([getattr(row, field) for row in rows]))


def deviation(rows: Sequence[Row], field: str) -> float | None:
    """Standard deviation of a field over seeds (n - 1); None for a single seed."""
    return float(np.std([getattr(row, field) for row in rows], ddof=1)) if len(rows) > 1 else None


def points(difference: float) -> str:
    """A difference of accuracies in percentage points: `−0.3`."""
    return f"{difference * 100:+.1f}".replace("-", "−")


def accuracy(group: Sequence[Row]) -> str:
    """`85.3 %`, or `85.3 ± 0.2 % (n = 3)` over seeds."""
    if not group:
        return "–"
    middle, spread = mean(group, "accuracy"), deviation(group, "accuracy")
    if spread is None:
        return f"{middle * 100:.1f} %"
    return f"{middle * 100:.1f} ± {spread * 100:.1f} % (n = {len(group)})"


def gain(group: Sequence[Row]) -> str:
    """What mirroring adds, `+0.8`; a dash where it was not measured for every seed."""
    gains = [row.mirrored - row.accuracy for row in group if row.mirrored is not None]
    return points(float(np.mean(gains))) if gains and len(gains) == len(group) else "–"


def epochs(group: Sequence[Row]) -> str:
    """Mean number of epochs run."""
    return f"{mean(group, 'epochs'):.0f}" if group else "–"


def seconds(group: Sequence[Row]) -> str:
    """Mean training time of the rows that had the machine to themselves."""
    alone = [row for row in group if not row.shared]
    return duration(mean(alone, "train_seconds")) if alone else "–"


def texts() -> dict[str, Any]:
    """Name functions for the templates."""
    return {f.__name__: f for f in (mean, share, points, accuracy, gain, epochs, seconds)}


def worth(study: Study, bare: str, full: str) -> list[str]:
    """List what the variant `full` gains over `bare`: `+3.9 ± 0.5 points at 10 %`, ..."""
    found: list[str] = []
    for fraction in study.fractions(bare):
        groups = study.group(bare, fraction), study.group(full, fraction)
        if not all(groups):
            continue
        means = [mean(group, "accuracy") for group in groups]
        variances = [m * (1 - m) / len(g) / g[0].n_test for m, g in zip(means, groups, strict=True)]
        error = sum(variances) ** 0.5 * 100
        unit = " points" * (not found)
        found.append(f"{points(means[1] - means[0])} ± {error:.1f}{unit} at {share(fraction)}")
    return found


def noise(full: Sequence[Row]) -> float | None:
    """Points by which one seed must differ from the mean of `full` to be significant: twice the
    standard error of the difference. None without a second seed."""
    spread = deviation(full, "accuracy")
    return None if spread is None else 2 * spread * (1 + 1 / len(full)) ** 0.5 * 100


def read_as(path: Path, schema: type[_Schema], remedy: str = "") -> _Schema:
    """Read a result; `remedy` ends the message where it does not follow the schema.

    Raises:
        LabelcurveError: it cannot be read, or does not follow the schema.
    """
    try:
        return schema.model_validate_json(path.read_bytes())
    except OSError as error:
        raise LabelcurveError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise LabelcurveError(
            f"{path} does not follow this release's schema{remedy or f': {error}'}"
        ) from error


def read(path: Path) -> Study:
    """Read a study.

    Raises:
        LabelcurveError: it cannot be read, or does not follow the schema.
    """
    return read_as(path, Study, ": move it away, or choose another file with --out")
