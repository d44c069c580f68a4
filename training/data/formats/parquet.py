"""A folder of Parquet files, in the layout of an image data set on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from labelcurve.bundle.errors import DataError
from labelcurve.bundle.text import counted
from labelcurve.training.data.class_names import check_labels, class_name, report_alike
from labelcurve.training.data.formats import columns, hub
from labelcurve.training.data.formats.row_groups import Column, RowGroups, external
from labelcurve.training.data.source import (
    UNLABELLED,
    LeftOut,
    Rows,
    Say,
    Source,
    hash_file,
    hash_images,
    name_of,
    shown,
    watch,
)

T = TypeVar("T")


@dataclass(frozen=True)
class _Layout:
    """Location of images and labels in a file."""

    image: Column
    label: str
    label_type: str
    class_names: tuple[str, ...] | None
    """Class names from the metadata that `datasets` writes; None without it."""
    splits: list[str]
    """Columns that look like splits; they are not read."""


@dataclass(frozen=True)
class _Labels:
    """The label column of a file."""

    values: list[Any]
    """Each once; None where a row has none."""
    rows: NDArray[np.int32]
    """[N] The value of each row, an index."""


def parquet(path: Path, say: Say, label_column: str | None = None) -> Source:
    """A folder of Parquet files: a column `img` or `image`, and `label`.

    Other columns are found by the features that `datasets` writes into the file. The image is a
    struct with `bytes` or with a `path` relative to the file, or either alone. A row whose label is
    null, or -1 where the classes have names, is unlabelled. The splits are those of `hub.by_split`.

    Args:
        label_column: the column of labels; None finds it.

    Raises:
        DataError: a file cannot be used as it is; the message names it.
    """
    by_split, left_out = hub.by_split(path, say)
    files = [file for found in by_split.values() for file in found]
    layouts = {file: _layout(file, label_column) for file in files}
    linked = [image for file in files for image in external(layouts[file].image)]
    changed = watch([*files, *linked])
    if list(by_split) == ["train"] and (found := [f for f in files if layouts[f].splits]):
        raise DataError(
            f"{shown(found[0])} has a column {layouts[found[0]].splits[0]!r} that looks like a "
            "split, and no file is test by its name: write the rows of each split into a file of "
            "its own (train.parquet, test.parquet), or remove the column"
        )
    labels = {file: _labels(file, layouts[file].label) for file in files}
    _check_alike(layouts)
    if (column := layouts[files[0]].label) != "label":
        say(f"{shown(path)}: the column {column} holds the labels")
    class_names, index = _class_names(
        path, layouts[files[0]].class_names, list(labels.values()), say
    )
    rows = {
        split: _rows([layouts[file].image for file in found], labels, index, class_names)
        for split, found in by_split.items()
    }
    if "unlabelled" in rows:
        if n := int((rows["unlabelled"].labels != UNLABELLED).sum()):
            names = ", ".join(file.name for file in by_split["unlabelled"])
            say(
                f"{shown(path)}: {counted(n, 'label')} in {names} not used, since that is the name "
                "of unlabelled images: rename the file to train-....parquet to use them"
            )
        rows["train"], more = _joined_unlabelled(by_split, layouts, rows)
        del rows["unlabelled"]
        by_split = {**by_split, "train": more}
    if "test" in rows:
        rows["test"], without = _labelled_only(rows["test"])
        left_out += without
        if not len(rows["test"].labels):
            say(f"{shown(path)}: no image of the test split has a label: it is not used")
            del rows["test"]
    listing = [
        f"{split} {shown(file.relative_to(path))} {hash_file(file)}"
        for split, found in by_split.items()
        for file in found
    ]
    listing += [f"{shown(image)} {h}" for image, h in zip(linked, hash_images(linked), strict=True)]
    return Source(
        name=name_of(path),
        fingerprint=hashlib.sha256("\n".join(listing).encode()).hexdigest(),
        class_names=class_names,
        size=None,
        splits=rows,
        changed=changed,
        left_out=tuple(left_out),
        external=tuple(linked),
    )


def is_images(file: Path) -> bool:
    """Returns whether a Parquet file has a column of images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
        kinds = [feature.get("_type") for feature in columns.features(schema).values()]
        return "Image" in kinds or not {"img", "image"}.isdisjoint(schema.names)
    except (pa.ArrowException, OSError):
        return True  # reading it reports what is wrong


def _check_alike(layouts: dict[Path, _Layout]) -> None:
    first, *others = layouts
    for file in others:
        one, other = layouts[file], layouts[first]
        for what, own, theirs in (
            ("columns of labels (--label-column says which)", one.label, other.label),
            ("class names", one.class_names, other.class_names),
            ("types of label", one.label_type, other.label_type),
        ):
            if own != theirs:
                raise DataError(f"{file} and {first} have different {what}: {own} and {theirs}")


def _class_names(
    path: Path, named: tuple[str, ...] | None, labels: Sequence[_Labels], say: Say
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """The names, and the index of each value of the label column."""
    counts: Counter[Any] = Counter()
    for of in labels:
        numbers = np.bincount(of.rows, minlength=len(of.values)).tolist()
        counts.update(dict(zip(of.values, numbers, strict=True)))
    if named is None:
        spelt = {value: class_name(str(value)) for value in sorted(set(counts) - {None})}
        of_names: Counter[str] = Counter()
        for value, name in spelt.items():
            of_names[name] += counts[value]
        del of_names[""]
        names = tuple(of_names)
        number_of = {name: number for number, name in enumerate(names)} | {"": UNLABELLED}
        index = {value: number_of[name] for value, name in spelt.items()}
        check_labels(shown(path), of_names, say)
    else:
        names, index = named, {number: number for number in range(len(named))}
        if -1 in counts:  # what `datasets` writes for a hidden label
            say(f"{shown(path)}: {counted(counts[-1], 'image')} with the label -1: unlabelled")
            index[-1] = UNLABELLED
    if len(names) < 2:
        raise DataError(
            f"{shown(path)}: at least two classes are needed in the column of labels, found: "
            f"{', '.join(names) or 'none'}"
        )
    report_alike(shown(path), names, say)
    return names, index | {None: UNLABELLED, "": UNLABELLED}


def _rows(
    images: list[Column],
    labels: dict[Path, _Labels],
    index: dict[Any, int],
    class_names: tuple[str, ...],
) -> Rows:
    classes: list[NDArray[np.int32]] = []
    unknown = -2
    for column in images:
        found = labels[column.file]
        numbers = np.array([index.get(value, unknown) for value in found.values], np.int32)
        classes.append(numbers[found.rows])
        if unknown in classes[-1]:
            bad = int(np.argmin(classes[-1]))
            raise DataError(
                f"{shown(column.file)} row {bad} has label {found.values[found.rows[bad]]!r}; the "
                f"class names allow 0 to {len(class_names) - 1} ({', '.join(class_names[:5])}, "
                "...), and null for an image without a label"
            )
    groups = RowGroups(images)
    return Rows(np.concatenate(classes), groups.read, groups.where, groups.starts)


def _joined_unlabelled(
    by_split: dict[str, list[Path]], layouts: dict[Path, _Layout], rows: dict[str, Rows]
) -> tuple[Rows, list[Path]]:
    """The training rows with those of unlabelled files, whatever the label column says there."""
    files = by_split["train"] + by_split["unlabelled"]
    groups = RowGroups([layouts[file].image for file in files])
    none = np.full(len(rows["unlabelled"].labels), UNLABELLED, np.int32)
    labels = np.concatenate([rows["train"].labels, none])
    return Rows(labels, groups.read, groups.where, groups.starts), files


def _labelled_only(rows: Rows) -> tuple[Rows, list[LeftOut]]:
    """Test rows with a label; the others cannot be scored."""
    there = np.flatnonzero(rows.labels != UNLABELLED)
    if len(there) == len(rows.labels):
        return rows, []
    gone = np.flatnonzero(rows.labels == UNLABELLED).tolist()
    left_out = [LeftOut(rows.where(row), "images of test without a label") for row in gone]
    read, where = partial(_at, rows.read, there), partial(_at, rows.where, there)
    return Rows(rows.labels[there], read, where), left_out


def _at(of: Callable[[int], T], there: NDArray[np.int64], i: int) -> T:
    return of(int(there[i]))


def _layout(file: Path, label_column: str | None) -> _Layout:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema, metadata = pq.read_schema(file), pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {file} as Parquet: {error}") from error
    image, name = columns.of_parquet(file, schema, label_column)
    kind = schema.field(image).type
    is_struct = pa.types.is_struct(kind)
    inner = {kind.field(i).name for i in range(kind.num_fields)} if is_struct else set()
    has_bytes = "bytes" in inner or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    has_path = "path" in inner or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not has_bytes and not has_path:
        raise DataError(
            f"{file}: column `{image}` is of type {kind}: it needs a struct with the images' file "
            "bytes in `bytes`, or with a `path`"
        )
    label = schema.field(name).type
    value = label.value_type if pa.types.is_dictionary(label) else label
    if not any(
        is_kind(value)
        for is_kind in (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)
    ):
        raise DataError(
            f"{file}: column `{name}` is of type {label}: it needs whole numbers or strings"
        )
    column = Column(file, image, has_bytes, has_path, is_struct)
    class_names = columns.features(schema).get(name, {}).get("names")
    named = None
    if isinstance(class_names, list):
        named = tuple(class_name(str(each)) for each in class_names)
    splits = columns.like_splits(metadata, (image, name))
    return _Layout(column, name, str(label), named, splits)


def _labels(file: Path, name: str) -> _Labels:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        column = pq.read_table(file, columns=[name]).column(0)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {file} as Parquet: {error}") from error
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    found = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return _Labels(found.dictionary.to_pylist(), np.array(found.indices, np.int32))
