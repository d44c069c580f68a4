"""The schema of `study.json`: one row a trained model, and what several of them say together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from bundle.errors import LabelcurveError

SCHEMA_VERSION: Final = 1


class Row(BaseModel):
    """One trained model on the official test images, and how it came about."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: str
    """A name in `benchmarks.study.VARIANTS`."""
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
    n_test: int
    val_accuracy: float
    epochs: int
    best_epoch: int
    train_seconds: float
    pretraining_seconds: float | None
    """What the extractor had cost when it was made, on whatever machine."""
    shared: bool
    """Other work ran on the machine: the seconds are no measurement of the training."""
    hardware: str
    """With the number of threads."""
    arithmetic: str | None
    """fp32 or bf16; None where it was not recorded."""
    started: str
    """ISO 8601, UTC."""
    git_commit: str | None
    packages: dict[str, str]
    command: str
    """What makes the row again."""


class Study(BaseModel):
    """All rows so far."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    """Commands of the rows that were not trained yet."""

    def groups(self) -> list[list[Row]]:
        """Rows that differ in nothing but the seed, in the order of the file."""
        found: dict[tuple[str, float], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row.variant, row.fraction), []).append(row)
        return list(found.values())

    def group(self, variant: str, fraction: float) -> list[Row]:
        """The rows of one variant at one fraction, by seed."""
        return [row for row in self.rows if (row.variant, row.fraction) == (variant, fraction)]

    def fractions(self, *variants: str) -> list[float]:
        """At which any of the variants was trained, ascending."""
        return sorted({row.fraction for row in self.rows if row.variant in variants})


def mean(rows: list[Row], pick: Callable[[Row], float]) -> float:
    """Over seeds."""
    return float(np.mean([pick(row) for row in rows]))


def deviation(rows: list[Row], pick: Callable[[Row], float]) -> float | None:
    """Standard deviation over seeds (n - 1); None for a single one."""
    return float(np.std([pick(row) for row in rows], ddof=1)) if len(rows) > 1 else None


def read(path: Path) -> Study:
    """The study in a file.

    Raises:
        LabelcurveError: it cannot be read, or does not follow the schema.
    """
    try:
        return Study.model_validate_json(path.read_bytes())
    except OSError as error:
        raise LabelcurveError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise LabelcurveError(
            f"{path} is no study.json of this release ({error.error_count()} fields differ): move "
            "it away, or name another file with --out"
        ) from error
