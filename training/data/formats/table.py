"""A table of images and labels as a source: CSV, JSON lines, or an export of Label Studio."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote

from labelcurve.bundle.errors import DataError
from labelcurve.bundle.preprocess import SUFFIXES as IMAGES
from labelcurve.bundle.text import counted
from labelcurve.training.data.class_names import check_labels, report_alike
from labelcurve.training.data.formats import split_names, table_search
from labelcurve.training.data.formats.folder import use_validation
from labelcurve.training.data.formats.table_rows import SUFFIXES as SUFFIXES
from labelcurve.training.data.formats.table_rows import Row, read
from labelcurve.training.data.formats.tree import scan
from labelcurve.training.data.source import (
    UNLABELLED,
    LeftOut,
    Say,
    Source,
    name_of,
    of_files,
    shown,
)

LISTED = 10


def table(file: Path, say: Say, label_column: str | None = None) -> Source:
    """Opens a table with the columns `path`, `label` and, if wanted, `split`.

    Paths are relative to the table's folder. An image with an empty label is unlabelled.

    Args:
        file: CSV, tab-separated values, JSON lines, or a JSON export of Label Studio.
        label_column: the column of labels; None finds it by its name.

    Raises:
        DataError: a row or the whole cannot be used; the message names it.
    """
    rows = read(file, label_column)
    if not rows:
        raise DataError(f"{shown(file)} holds no row: it needs a path and a label in each")
    placed = _placed(file, rows)
    _check_conflicts(file, placed)
    unique = dict(placed)
    if len(unique) < len(placed):
        n = len(placed) - len(unique)
        say(f"{shown(file)}: {counted(n, 'row')} left out, since another names the image, alike")
    by_split: dict[str, dict[str, list[Path]]] = {}
    unlabelled: list[Path] = []
    left_out: list[LeftOut] = []
    for path, row in unique.items():
        split = _split(file, row)
        if row.label and split != "unlabelled":
            by_split.setdefault(split, {}).setdefault(row.label, []).append(path)
        elif split in ("train", "unlabelled"):
            unlabelled.append(path)
        else:
            left_out.append(LeftOut(shown(path), f"images of {row.split} without a label"))
    labels = Counter(row.label for row in unique.values())
    del labels[""]
    check_labels(shown(file), labels, say)
    if len(by_split.get("train", {})) < 2:
        names = ", ".join(by_split.get("train", {})) or "none"
        raise DataError(
            f"{shown(file)}: at least two classes are needed among the training rows, found: "
            f"{names}"
        )
    parts = use_validation(shown(file), by_split, say)
    class_names = tuple(sorted({label for classes in parts.values() for label in classes}))
    missing = sorted(set(class_names) - set(parts["train"]))
    if missing:
        raise DataError(
            f"{shown(file)}: only rows of test have {', '.join(missing)}: train needs each class"
        )
    report_alike(shown(file), class_names, say)
    _report_not_read(file, unique, say)
    index = {name: number for number, name in enumerate(class_names)}
    pairs = {
        split: [(path, index[name]) for name in sorted(classes) for path in sorted(classes[name])]
        for split, classes in parts.items()
    }
    pairs["train"] += [(path, UNLABELLED) for path in sorted(unlabelled)]
    left_out += _unlisted(file, set(unique))
    return of_files(name_of_table(file), class_names, pairs, left_out, table=file)


def name_of_table(file: Path) -> str:
    """A data set's name, from that of its table, or from the folder of one called `labels.csv`."""
    generic = r"(?i)(labels?|annotations?|metadata|manifest|train|index|data)"
    return name_of(
        file.resolve().parent if re.fullmatch(generic, file.stem) else file.with_suffix("")
    )


def _report_not_read(file: Path, rows: dict[Path, Row], say: Say) -> None:
    """Says which rows and which other tables give no label."""
    without = [row for row in rows.values() if not row.label]
    if without:
        numbers = ", ".join(str(row.number) for row in without[:LISTED])
        say(
            f"{shown(file)}: {counted(len(without), 'image')} without a label, in row {numbers}"
            f"{', ...' if len(without) > LISTED else ''}"
        )
    dropped = sum(bool(row.label) and _split(file, row) == "unlabelled" for row in rows.values())
    if dropped:
        say(f"{shown(file)}: {counted(dropped, 'label')} not used: the split is unlabelled there")
    for other in table_search.others(file):
        say(
            f"{shown(other)} is a table of labels, too, and is not read: put its rows into one "
            "table, with a column `split` if they are test"
        )


def _unlisted(file: Path, listed: set[Path]) -> list[LeftOut]:
    """Finds files in or below the folder of a table's images that the table does not list."""
    common = Path(os.path.commonpath([path.parent.resolve() for path in listed]))
    if common == Path(common.anchor):
        return []
    known = {path.resolve() for path in listed}
    found = scan(common, None)
    reason = "images that the table does not list"
    images = [LeftOut(shown(path), reason) for path in found.below() if path.resolve() not in known]
    used = {shown(path) for path in (*known, file.resolve())}
    return images + [item for item in found.left_out() if item.path not in used]


def _split(file: Path, row: Row) -> str:
    split = split_names.of_value(row.split) if row.split else "train"
    if split is None:
        raise DataError(
            f"{shown(file)} row {row.number}: {row.split!r} is not a split: allowed are train, "
            "validation, test and unlabelled"
        )
    return split


def _placed(file: Path, rows: Iterable[Row]) -> list[tuple[Path, Row]]:
    """The rows with their files; a path that leads nowhere stays, and decoding reports it."""
    placed, missing = [], []
    for row in rows:
        if not row.path:
            raise DataError(f"{shown(file)} row {row.number} has no path")
        # JSON may hold halves of surrogate pairs: bytes of a file's name, but of nothing else.
        for cell, encode in ((row.path, os.fsencode), (row.label + row.split, str.encode)):
            if not _is_text(cell, encode):
                raise DataError(
                    f"{shown(file)} row {row.number}: {cell!a} has a character that no file "
                    "name and no class name may have (NUL, or half of a surrogate pair): remove it"
                )
        if re.match(r"(?i)(https?|s3|gs|azure-blob|hdfs)://", row.path):
            raise DataError(
                f"{shown(file)} row {row.number}: {row.path} is not a local file: download the "
                "images and give their paths"
            )
        tried = [
            Path(os.path.normpath(folder / inner))
            for folder in (file.parent, file.with_suffix(""))  # train/ next to train.csv
            for inner in _candidates(row.path)
        ]
        try:
            path = next((path for path in tried if path.exists()), None) or _with_ending(tried)
        except OSError as error:
            raise DataError(
                f"{shown(file)} row {row.number}: {row.path[:80]} cannot be looked up: "
                f"{error.strerror}"
            ) from error
        if path is None:
            missing.append((row, tried))
        elif path.is_dir():
            raise DataError(f"{shown(file)} row {row.number}: {shown(path)} is a folder, no image")
        placed.append((path or tried[0], row))
    if len(missing) == len(placed):
        row, tried = missing[0]
        raise DataError(
            f"{shown(file)}: none of its images is there, as row "
            f"{row.number}: {row.path} ({shown(tried[0])}). Paths are relative to the "
            f"table's folder{_elsewhere(file, placed)}"
        )
    return placed


def _is_text(cell: str, encode: Callable[[str], bytes]) -> bool:
    try:
        return b"\0" not in encode(cell)
    except UnicodeEncodeError:
        return False


def _with_ending(tried: Iterable[Path]) -> Path | None:
    """An image whose name the table gives without its ending, as many competitions do."""
    for path in tried:
        found = [
            path.with_name(path.name + suffix)
            for ending in sorted(IMAGES)
            for suffix in (ending, ending.upper())
            if path.suffix.lower() not in IMAGES
        ]
        there = [path for path in found if path.exists()]
        if len(there) == 1:
            return there[0]
    return None


def _elsewhere(file: Path, placed: Iterable[tuple[Path, Row]]) -> str:
    """The folders below the table's with most images of the names it lists, for a message."""
    names = {re.split(r"[/\\]", row.path)[-1].casefold() for _, row in placed}
    found = Counter(
        image.parent
        for image in scan(file.parent, None).below()
        if image.name.casefold() in names or image.stem.casefold() in names
    )
    if not found:
        return ""
    most = max(found.values())
    folders = " and as many in ".join(shown(f) for f, n in sorted(found.items()) if n == most)
    return (
        f"; {counted(most, 'image')} of these names (in any case) in {folders}: change the paths, "
        "or move the table to where they begin"
    )


def _candidates(path: str) -> list[str]:
    """Returns possible paths of an image: Label Studio uses those of its server."""
    address, _, query = path.partition("?")
    if address.endswith("/data/local-files/"):
        return [unquote(parse_qs(query).get("d", [""])[0])]
    uploaded = re.fullmatch(r"/?data/upload/(?:\d+/)?(?:([0-9a-f]{8}-)?(.+))", path)
    if uploaded is None:
        forms = [unicodedata.normalize(form, path) for form in ("NFC", "NFD")]
        return list(dict.fromkeys((path, path.replace("\\", "/"), *forms)))
    prefix, name = uploaded[1] or "", unquote(uploaded[2])
    names = dict.fromkeys((prefix + name, name))
    return [path.lstrip("/"), *(f"{d}{n}" for d in ("images/", "", "upload/") for n in names)]


def _check_conflicts(file: Path, placed: Sequence[tuple[Path, Row]]) -> None:
    """One image under two labels or in two splits."""
    first: dict[Path, Row] = {}
    conflicts: dict[Path, list[Row]] = {}
    for path, row in placed:
        known = first.setdefault(path, row)
        if known is row:
            continue
        if known.label != row.label or _split(file, known) != _split(file, row):
            conflicts.setdefault(path, [known]).append(row)
    if conflicts:
        lines = [
            f"  {shown(path)}: "
            + ", ".join(
                f"row {r.number} {r.label or 'no label'}{f' ({r.split})' if r.split else ''}"
                for r in rows
            )
            for path, rows in list(conflicts.items())[:LISTED]
        ]
        raise DataError(
            f"{shown(file)}: {counted(len(conflicts), 'image')} with rows that differ (keep one "
            "row each):\n" + "\n".join(lines)
        )
