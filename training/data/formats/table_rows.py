"""The rows of a table of images: from CSV, JSON lines, JSON, or an export of Label Studio."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelcurve.bundle.errors import DataError
from labelcurve.training.data.class_names import class_name
from labelcurve.training.data.corrections import COLUMNS as AUDITED
from labelcurve.training.data.formats.columns import check_others, note, of_table, one_hot
from labelcurve.training.data.source import shown

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class Row:
    """One image of a table."""

    number: int
    """Number of the line or entry in the file, from 1."""
    path: str
    label: str
    """Empty where there is none."""
    split: str = ""


def read(file: Path, label_column: str | None = None) -> list[Row]:
    """Reads a table by its ending.

    Args:
        file: CSV, tab-separated values, JSON lines or JSON.
        label_column: the column of labels; None finds it by its name.

    Raises:
        DataError: it cannot be read, or a row is not an image with a label; the message names it.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {shown(file)}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{shown(file)} is not UTF-8 (byte {error.start}): save it as UTF-8 (in Excel: `CSV "
            "UTF-8`)"
        ) from error
    if file.suffix.lower() == ".json":
        return _read_json(file, text, label_column)
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        entries = [(n, _parsed(file, line, f" line {n}")) for n, line in lines]
        return _entries(file, entries, label_column)
    return _read_csv(file, text, label_column)


def _read_csv(file: Path, text: str, label: str | None) -> list[Row]:
    header = re.split(r"[\r\n]", text, maxsplit=1)[0]
    tabs = file.suffix.lower() == ".tsv" and "\t" in header
    delimiter = "\t" if tabs else max(",\t;|", key=header.count)
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    rows = []
    try:
        columns = _csv_columns(file, reader, label)
        seen: dict[str, set[str]] = {}
        for found in reader:
            if None in found or any(value is None for value in found.values()):
                raise DataError(
                    f"{shown(file)} line {reader.line_num} has more or fewer cells than the header"
                )
            note(seen, found)
            cells = {key: found[name].strip() for key, name in columns.items()}
            if any("\n" in cell or "\r" in cell for cell in cells.values()):
                raise DataError(
                    f"{shown(file)} line {reader.line_num}: a cell holds a line break: is a "
                    "quotation mark before it not closed?"
                )
            name = class_name(_choice(file, reader.line_num, cells["label"]))
            rows.append(Row(reader.line_num, cells["path"], name, cells.get("split", "")))
    except csv.Error as error:
        raise DataError(
            f"{shown(file)} line {reader.line_num}: {error}: is a quotation mark not closed?"
        ) from error
    check_others(file, seen, label)
    return rows


def _csv_columns(file: Path, reader: csv.DictReader[str], label: str | None) -> dict[str, str]:
    names = reader.fieldnames or []
    if label is None and set(AUDITED) <= set(names):
        raise DataError(
            f"{shown(file)} is a list of doubtful labels, which `labelcurve audit` wrote: give it "
            "with --drop or --relabel, and the labelled images with --data"
        )
    try:
        return of_table(file, names, label=label)
    except DataError:
        if label is None and (hot := one_hot(names, list(reader))):
            raise DataError(
                f"{shown(file)} has a column of 0 and 1 for each class ({', '.join(hot[:6])}"
                f"{', ...' if len(hot) > 6 else ''}): write the name of the class into one column "
                "`label` (pandas: table[classes].idxmax(axis=1)); an image has one label"
            ) from None
        raise


def _read_json(file: Path, text: str, label: str | None) -> list[Row]:
    found = _parsed(file, text, "")
    if not isinstance(found, list):
        raise DataError(
            f"{shown(file)} holds no list: expected is Label Studio's export (JSON or JSON-MIN), "
            "or a list of objects with `path` and `label`"
        )
    return _entries(file, list(enumerate(found, 1)), label)


def _entries(file: Path, entries: list[tuple[int, Any]], label: str | None) -> list[Row]:
    rows = [_entry(file, number, entry, label) for number, entry in entries]
    seen: dict[str, set[str]] = {}
    for _, entry in entries:
        note(seen, entry)
    check_others(file, seen, label)
    if rows and not any(row.label for row in rows):
        raise DataError(
            f"{shown(file)}: no entry has a label{'' if label is None else f' in {label!r}'}; the "
            f"columns are {', '.join(map(repr, seen))}: --label-column names that of the labels"
        )
    return rows


def _parsed(file: Path, text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown(file)}{place} is not JSON: {error}") from error


def _entry(file: Path, number: int, entry: Any, label_column: str | None) -> Row:
    if not isinstance(entry, dict):
        raise DataError(f"{shown(file)} entry {number} is not an object with `path` and `label`")
    if isinstance(entry.get("data"), dict) and "annotations" in entry:
        if label_column is not None:
            raise DataError(
                f"--label-column {label_column}: the labels of {shown(file)} are the choices in "
                "its annotations, as Label Studio exports them: leave the option out"
            )
        try:
            label = _chosen(file, number, entry["annotations"])
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(
                f"{shown(file)} entry {number} is not as Label Studio exports one "
                f"({type(error).__name__}: {error}): export the project again"
            ) from error
        entry = entry["data"]
        columns = of_table(file, list(entry), f" entry {number}", ("path",))
    else:
        # In JSON-MIN an unlabelled image lacks the key.
        columns = of_table(file, list(entry), f" entry {number}", ("path",), label_column)
        found = entry.get(columns.get("label", ""))
        label = _choice(file, number, "" if found is None else found)
    split = entry.get(columns.get("split", ""))
    return Row(
        number,
        _text(file, number, entry[columns["path"]]),
        class_name(label),
        "" if split is None else str(split).strip(),
    )


def _chosen(file: Path, number: int, annotations: list[dict[str, Any]]) -> str:
    """The choice of all annotations of a task of Label Studio that were not cancelled."""
    choices = [
        _choice(file, number, result["value"]["choices"])
        for annotation in annotations
        if not annotation.get("was_cancelled")
        for result in annotation.get("result", [])
        if result.get("type") == "choices"
    ]
    if len(set(choices)) > 1:
        raise DataError(
            f"{shown(file)} entry {number} has annotations that differ ({', '.join(choices)}): "
            "settle on one"
        )
    return choices[0] if choices else ""


def _choice(file: Path, number: int, value: Any) -> str:
    """One label; Label Studio writes a list, or JSON in a cell, where several may be chosen."""
    if isinstance(value, str) and value.startswith(('{"choices"', "[")):
        value = _parsed(file, value, f" row {number}")
    if isinstance(value, dict) and "choices" in value:
        value = value["choices"]
    if isinstance(value, list):
        if len(value) > 1:
            raise DataError(
                f"{shown(file)} row {number} has {len(value)} labels ({', '.join(map(str, value))})"
                ": an image has one"
            )
        value = value[0] if value else ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise DataError(f"{shown(file)} row {number}: {value!r} is not a label")
    return str(value).strip()


def _text(file: Path, number: int, value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{shown(file)} row {number} has no path")
    if not isinstance(value, str):
        raise DataError(
            f"{shown(file)} row {number}: {str(value)[:80]} is not a path: a string is expected"
        )
    return value.strip()
