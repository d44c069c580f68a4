"""A folder of Parquet files, in the layout of an image data set on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bundle.errors import DataError
from training.source import Rows, Source, hash_file, name_of


def parquet(path: Path) -> Source:
    """A folder of Parquet files: a struct column `img` or `image` with `bytes`, and `label`.

    The split is in the file's name (`train-...`, `test-...`), as on the Hub; files without one
    are train.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    by_split: dict[str, list[Path]] = {}
    for file in files_in(path):
        test = re.search(r"(^|[^a-z])test([^a-z]|$)", file.name.lower())
        other = re.search(r"(^|[^a-z])(validation|valid|val|unsupervised)([^a-z]|$)", file.name)
        if not other:
            by_split.setdefault("test" if test else "train", []).append(file)
    if "train" not in by_split:
        raise DataError(
            f"{path}: no Parquet file of a train split among "
            f"{', '.join(file.name for file in files_in(path))}: name it train-....parquet"
        )
    names: dict[str, tuple[str, ...] | None] = {}
    columns: dict[str, tuple[str, str]] = {}
    labels: dict[str, Any] = {}
    for split, files in by_split.items():
        tables = []
        for file in files:
            try:
                schema = pq.read_schema(file)
                columns[split] = _columns(file, schema)
                tables.append(pq.read_table(file, columns=[columns[split][1]]))
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"cannot read {file} as Parquet: {error}") from error
            names[split] = _names_in(schema, columns[split][1])
        labels[split] = pa.concat_tables(tables).column(0).to_pylist()
    if "test" in names and names["test"] != names["train"]:
        raise DataError(
            f"{path}: the train and test files have different class names: "
            f"{names['train']} and {names['test']}"
        )
    class_names = names["train"]
    if class_names is None:
        values = sorted(
            {value for column in labels.values() for value in column if value is not None}
        )
        class_names = tuple(str(value) for value in values)
        index = {value: number for number, value in enumerate(values)}
    else:
        index = {number: number for number in range(len(class_names))}
    if len(class_names) < 2:
        raise DataError(
            f"{path}: {len(class_names)} class in the label column: at least two needed"
        )
    splits = {}
    for split, files in by_split.items():
        for row, value in enumerate(labels[split]):
            if value not in index:
                raise DataError(
                    f"{path}: {split} row {row} has label {value!r}; the class names allow 0 to "
                    f"{len(class_names) - 1} ({', '.join(class_names[:5])}, ...)"
                )
        splits[split] = Rows(
            np.array([index[value] for value in labels[split]], np.int64),
            _parquet_reader(tuple(files), columns[split][0]),
            _row_namer(path, split),
        )
    listing = [f"{file.name} {hash_file(file)}" for files in by_split.values() for file in files]
    return Source(
        name=name_of(path),
        fingerprint=hashlib.sha256("\n".join(listing).encode()).hexdigest(),
        class_names=class_names,
        size=32,
        splits=splits,
    )


def files_in(path: Path) -> list[Path]:
    """The Parquet files in a folder, or in its `data/`."""
    return sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet"))


def _columns(file: Path, schema: Any) -> tuple[str, str]:
    image = next((name for name in ("img", "image") if name in schema.names), None)
    if image is None or "label" not in schema.names:
        raise DataError(
            f"{file} has the columns {', '.join(schema.names)}: it needs `img` or `image` (a "
            "struct with `bytes`) and `label`"
        )
    return image, "label"


def _names_in(schema: Any, label: str) -> tuple[str, ...] | None:
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names)


def _parquet_reader(files: tuple[Path, ...], column: str) -> Callable[[int], bytes]:
    @cache
    def values() -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.concat_tables([pq.read_table(file, columns=[column]) for file in files])
        structs = table.column(0).combine_chunks()
        return structs.field("bytes") if pa.types.is_struct(structs.type) else structs

    def read(i: int) -> bytes:
        data = values()[i].as_py()
        return data if isinstance(data, bytes) else b""

    return read


def _row_namer(path: Path, split: str) -> Callable[[int], str]:
    return lambda i: f"{path} {split} row {i}"
