"""Real, small data sets in files: scikit-learn's digits as folders and as Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from labelcurve.training.data.sources import digits

Row = tuple[int, bytes]
"""A label and the bytes of an image file."""

NAMES = tuple("0123456789")


@cache
def digit_rows(per_class: int = 10) -> tuple[Row, ...]:
    """The first digits of each class, class by class."""
    source = digits().splits["train"]
    rows = []
    for label in range(10):
        found = (source.labels == label).nonzero()[0][:per_class]
        rows += [(label, source.read(int(i))) for i in found]
    return tuple(rows)


def write_folder(root: Path, rows: Iterable[Row], names: Sequence[str] = NAMES) -> Path:
    """A folder of class folders with one PNG a row, numbered in the order of the rows."""
    for number, (label, data) in enumerate(rows):
        folder = root / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05d}.png").write_bytes(data)
    return root


def write_parquet(
    file: Path,
    rows: Iterable[Row],
    names: Sequence[str] | None = NAMES,
    image: str = "image",
    rows_per_group: int | None = None,
) -> Path:
    """One Parquet file in the layout of the Hub; without `names` the labels stand alone."""
    rows = list(rows)
    table = pa.table(
        {
            image: [{"bytes": data, "path": None} for _, data in rows],
            "label": pa.array([label for label, _ in rows], pa.int64()),
        }
    )
    if names is not None:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=rows_per_group)
    return file
