"""The image column of Parquet files, read by row groups."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labelcurve.bundle import files
from labelcurve.bundle.errors import DataError, UnreadableImage
from labelcurve.training.data.source import shown

KEPT_BYTES = 32 * 2**20
"""Bytes of row groups that are kept once they are read."""


@dataclass(frozen=True)
class Column:
    """The image column of a file."""

    file: Path
    name: str
    has_bytes: bool
    """The files themselves are in it."""
    has_path: bool
    """Their paths are, relative to the file."""
    is_struct: bool
    """Bytes and path are fields of it, not the column itself."""


def external(column: Column) -> list[Path]:
    """The image files that a Parquet file names by their paths, without having their bytes."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not column.has_path or not _may_lack_bytes(column):
        return []
    try:
        found = pq.read_table(column.file, columns=[column.name]).column(0)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {column.file} as Parquet: {error}") from error
    if column.is_struct:
        paths = pc.struct_field(found, "path")
        if column.has_bytes:
            paths = paths.filter(pc.is_null(pc.struct_field(found, "bytes")))
    else:
        paths = found
    # A path that no file can have is an unreadable image, as `read` says.
    return [column.file.parent / p for p in paths.to_pylist() if p and "\0" not in p]


def _may_lack_bytes(column: Column) -> bool:
    """Returns whether some row may have no bytes, by the statistics in the file's footer."""
    import pyarrow.parquet as pq

    if not column.has_bytes:
        return True
    metadata = pq.read_metadata(column.file)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for place in range(group.num_columns):
            found = group.column(place)
            if found.path_in_schema == f"{column.name}.bytes":
                known = found.statistics
                if known is None or not known.has_null_count or known.null_count:
                    return True
    return False


class RowGroups:
    """File bytes of the rows of a split, read by row groups; those used last are kept.

    Args:
        columns: of the files, in order.
    """

    def __init__(self, columns: list[Column]) -> None:
        import pyarrow.parquet as pq

        self._columns = columns
        self._metadata = {column.file: pq.read_metadata(column.file) for column in columns}
        self._groups = [
            (column, number)
            for column in columns
            for number in range(self._metadata[column.file].num_row_groups)
        ]
        sizes = [
            self._metadata[column.file].row_group(number).num_rows
            for column, number in self._groups
        ]
        self.starts = np.cumsum([0, *sizes], dtype=np.int64)[:-1]
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[RowGroups], tuple[list[Column]]]:
        return RowGroups, (self._columns,)

    def read(self, row: int) -> bytes:
        """The file bytes of a row.

        Raises:
            UnreadableImage: it has neither bytes nor a path, or its file is not there.
        """
        group = self._group(row)
        column, _ = self._groups[group]
        found: Any = self._values(group)[row - int(self.starts[group])].as_py()
        data = found.get("bytes") if isinstance(found, dict) else found
        path = found.get("path") if isinstance(found, dict) else found
        if isinstance(data, bytes):
            return data
        if not column.has_path or not path:
            raise UnreadableImage("it is null: it has neither bytes nor a path")
        if "\0" in path:
            raise UnreadableImage(f"it names the file {path!r}: no file name has a NUL")
        try:
            return files.read(Path(column.file.parent, path))
        except OSError as error:
            raise UnreadableImage(
                f"it names the file {path}, which cannot be read next to the Parquet file: "
                f"{error.strerror}"
            ) from error

    def where(self, row: int) -> str:
        """The file of a row, and its number there."""
        group = self._group(row)
        column, number = self._groups[group]
        return f"{shown(column.file)} row {row - int(self.starts[group - number])}"

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

    def _load(self, column: Column, number: int) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(column.file, metadata=self._metadata[column.file]) as opened:
                found = opened.read_row_group(number, columns=[column.name]).column(0)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot read {column.file} as Parquet: {error}") from error
        if pa.types.is_binary(found.type):
            return found.cast(pa.large_binary())
        if column.is_struct and column.has_bytes:
            data = pc.struct_field(found, "bytes")
            if not data.null_count or not column.has_path:
                return data.cast(pa.large_binary())
        return found
