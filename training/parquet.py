"""A folder of Parquet files, in the layout of an image data set on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bundle.errors import DataError
from training.source import Rows, Say, Source, hash_file, name_of, watch


@dataclass(frozen=True)
class _Layout:
    """Where a file keeps images and labels."""

    image: str
    label_type: str
    class_names: tuple[str, ...] | None
    """From the metadata that `datasets` writes; None where there is none."""


def parquet(path: Path, say: Say) -> Source:
    """A folder of Parquet files: a struct column `img` or `image` with `bytes`, and `label`.

    The split is in the file's name (`train-...`, `test-...`), as on the Hub; files without one
    are train.
    """
    by_split = _by_split(path, say)
    changed = watch([file for files in by_split.values() for file in files])
    layouts: dict[Path, _Layout] = {}
    labels: dict[str, list[Any]] = {}
    for split, files in by_split.items():
        labels[split] = []
        for file in files:
            layouts[file] = _layout(file)
            labels[split] += _column(file, "label").to_pylist()
    first, *others = layouts
    for file in others:
        if layouts[file].class_names != layouts[first].class_names:
            raise DataError(
                f"{file} and {first} have different class names: {layouts[file].class_names} and "
                f"{layouts[first].class_names}"
            )
        if layouts[file].label_type != layouts[first].label_type:
            raise DataError(
                f"{file} and {first} have different types of label: {layouts[file].label_type} "
                f"and {layouts[first].label_type}"
            )
    class_names = layouts[first].class_names
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
            _reader([(file, layouts[file].image) for file in files]),
            _row_namer(path, split),
        )
    listing = [f"{file.name} {hash_file(file)}" for files in by_split.values() for file in files]
    return Source(
        name=name_of(path),
        fingerprint=hashlib.sha256("\n".join(listing).encode()).hexdigest(),
        class_names=class_names,
        size=32,
        splits=splits,
        changed=changed,
    )


def files_in(path: Path) -> list[Path]:
    """The Parquet files in a folder, or in its `data/`."""
    return sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet"))


def _by_split(path: Path, say: Say) -> dict[str, list[Path]]:
    by_split: dict[str, list[Path]] = {}
    ignored = []
    for file in files_in(path):
        words = re.split(r"[^a-z]+", file.name.lower())
        if {"validation", "valid", "val", "unsupervised"} & set(words):
            ignored.append(file.name)
        else:
            by_split.setdefault("test" if "test" in words else "train", []).append(file)
    if "train" not in by_split:
        raise DataError(
            f"{path}: no Parquet file of a train split among "
            f"{', '.join(file.name for file in files_in(path))}: name it train-....parquet"
        )
    if ignored:
        say(f"{path}: only train and test files are read, not {', '.join(ignored)}")
    return by_split


def _layout(file: Path) -> _Layout:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {file} as Parquet: {error}") from error
    image = next((name for name in ("img", "image") if name in schema.names), None)
    if image is None or "label" not in schema.names:
        raise DataError(
            f"{file} has the columns {', '.join(schema.names)}: it needs `img` or `image` (a "
            "struct with `bytes`) and `label`"
        )
    kind = schema.field(image).type
    has_bytes = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not has_bytes and not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
        raise DataError(
            f"{file}: column `{image}` is of type {kind}: it needs a struct with the images' file "
            "bytes in `bytes`"
        )
    label = schema.field("label").type
    value = label.value_type if pa.types.is_dictionary(label) else label
    if not any(
        is_kind(value)
        for is_kind in (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)
    ):
        raise DataError(
            f"{file}: column `label` is of type {label}: it needs whole numbers or strings"
        )
    return _Layout(image, str(label), _names_in(schema))


def _names_in(schema: Any) -> tuple[str, ...] | None:
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names)


def _column(file: Path, name: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file, columns=[name]).column(0)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {file} as Parquet: {error}") from error


def _reader(files: list[tuple[Path, str]]) -> Callable[[int], bytes]:
    @cache
    def values() -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        chunks = []
        for file, name in files:
            column = _column(file, name)
            if pa.types.is_struct(column.type):
                column = pc.struct_field(column, "bytes")
            chunks += column.cast(pa.large_binary()).chunks
        return pa.chunked_array(chunks, pa.large_binary())

    def read(i: int) -> bytes:
        data = values()[i].as_py()
        return data if isinstance(data, bytes) else b""

    return read


def _row_namer(path: Path, split: str) -> Callable[[int], str]:
    return lambda i: f"{path} {split} row {i}"
