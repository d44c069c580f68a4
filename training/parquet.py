"""A folder of Parquet files, in the layout of an image data set on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle.errors import DataError
from training.source import Rows, Say, Source, entries, hash_file, name_of, shown, watch

LISTED = 5
"""Missing files that a message names."""

KEPT_BYTES = 32 * 2**20
"""Of row groups that are kept once they are read."""


@dataclass(frozen=True)
class _Layout:
    """Where a file keeps images and labels."""

    image: str
    label_type: str
    class_names: tuple[str, ...] | None
    """From the metadata that `datasets` writes; None where there is none."""


@dataclass(frozen=True)
class _Labels:
    """Of a file."""

    values: list[Any]
    """Each once; None where a row has none."""
    rows: NDArray[np.int32]
    """[N] The value of each row, an index."""


def parquet(path: Path, say: Say) -> Source:
    """A folder of Parquet files: a struct column `img` or `image` with `bytes`, and `label`.

    The split is in the file's name (`train-...`, `test-...`), as on the Hub; files without one
    are train.
    """
    by_split = _by_split(path, say)
    _check_shards([file for files in by_split.values() for file in files])
    changed = watch([file for files in by_split.values() for file in files])
    layouts: dict[Path, _Layout] = {}
    labels: dict[str, list[_Labels]] = {}
    for split, files in by_split.items():
        labels[split] = []
        for file in files:
            layouts[file] = _layout(file)
            labels[split].append(_labels(file))
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
            {value for found in labels.values() for of in found for value in of.values} - {None}
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
        classes: list[NDArray[np.int32]] = []
        for file, found in zip(files, labels[split], strict=True):
            classes.append(np.array([index.get(v, -1) for v in found.values], np.int32)[found.rows])
            if -1 in classes[-1]:
                bad = int(np.argmin(classes[-1]))
                value = found.values[found.rows[bad]]
                has = f"label {value!r}; the class names allow 0 to {len(class_names) - 1} "
                has += f"({', '.join(class_names[:5])}, ...)"
                raise DataError(
                    f"{shown(file)} row {bad} has {'no label' if value is None else has}"
                )
        groups = _Groups([(file, layouts[file].image) for file in files])
        splits[split] = Rows(
            np.concatenate(classes),
            groups.read,
            groups.where,
            groups.starts,
        )
    listing = [
        f"{shown(Path(file.name))} {hash_file(file)}"
        for files in by_split.values()
        for file in files
    ]
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
    inside = entries(path)
    if (path / "data", True) in inside:
        inside = inside if _shards(inside) else entries(path / "data")
    return _shards(inside)


def _shards(inside: Sequence[tuple[Path, bool]]) -> list[Path]:
    return [file for file, is_folder in inside if file.suffix == ".parquet" and not is_folder]


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


def _check_shards(files: Sequence[Path]) -> None:
    """What the names count, `train-00000-of-00003`, must be there: a split is all of its files."""
    there: dict[tuple[str, str], set[int]] = {}
    for file in files:
        if found := re.fullmatch(r"(.*-)(\d{5})(-of-\d{5}.*)", file.name):
            before, number, after = found.groups()
            there.setdefault((before, after), set()).add(int(number))
    missing = [
        f"{before}{number:05d}{after}"
        for (before, after), numbers in there.items()
        for number in range(int(after[4:9]))
        if number not in numbers
    ]
    if missing:
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        raise DataError(
            f"{files[0].parent}: files are missing that the names of the others count: "
            f"{', '.join(missing[:LISTED])}{more}. Add them, or rename the others without -of-"
        )


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


def _labels(file: Path) -> _Labels:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        column = pq.read_table(file, columns=["label"]).column(0)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {file} as Parquet: {error}") from error
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    found = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return _Labels(found.dictionary.to_pylist(), np.array(found.indices, np.int32))


class _Groups:
    """File bytes of the rows of a split, read by row groups; those used last are kept.

    Args:
        files: each with the name of its image column.
    """

    def __init__(self, files: list[tuple[Path, str]]) -> None:
        import pyarrow.parquet as pq

        self._files = files
        self._metadata = {file: pq.read_metadata(file) for file, _ in files}
        self._groups = [
            (file, name, number)
            for file, name in files
            for number in range(self._metadata[file].num_row_groups)
        ]
        sizes = [
            self._metadata[file].row_group(number).num_rows for file, _, number in self._groups
        ]
        self.starts = np.cumsum([0, *sizes], dtype=np.int64)[:-1]
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[_Groups], tuple[list[tuple[Path, str]]]]:
        return _Groups, (self._files,)

    def read(self, row: int) -> bytes:
        """The file bytes of a row; none where it has none."""
        group = self._group(row)
        data = self._values(group)[row - int(self.starts[group])].as_py()
        return data if isinstance(data, bytes) else b""

    def where(self, row: int) -> str:
        """The file of a row, and its number there."""
        file, _, number = self._groups[self._group(row)]
        first = self._group(row) - number
        return f"{shown(file)} row {row - int(self.starts[first])}"

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def _values(self, group: int) -> Any:
        with self._lock:
            if group in self._kept:
                self._kept.move_to_end(group)
                return self._kept[group]
            found = self._kept[group] = self._load(*self._groups[group])
            # Threads are at work on two groups where one ends.
            while len(self._kept) > 2 and sum(v.nbytes for v in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
            return found

    def _load(self, file: Path, name: str, number: int) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(file, metadata=self._metadata[file]) as opened:
                column = opened.read_row_group(number, columns=[name]).column(0)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot read {file} as Parquet: {error}") from error
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, "bytes")
        return column.cast(pa.large_binary())
