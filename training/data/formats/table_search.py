"""Tables that lie among images: named where they may hold the labels, and checked against them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from labelcurve.bundle.errors import DataError
from labelcurve.bundle.text import counted
from labelcurve.training.data.formats.table_rows import SUFFIXES, Row, read
from labelcurve.training.data.formats.tree import Folder
from labelcurve.training.data.source import Say, shown

MOST = 6
"""Tables that are looked at; more of them are one an image."""

MOST_BYTES = 50 * 2**20


def mentioned(root: Folder) -> str:
    """The tables in a folder or in those directly in it, for a message; empty without any."""
    files = _tables(root)
    if not files:
        return ""
    if len(files) == 1:
        return (
            f". There is also {shown(files[0])}: a table that says the label of each image is read "
            f"with --data {shown(files[0])}"
        )
    return (
        f". There are also {', '.join(map(shown, files))}: a table that says the label of each "
        "image is read with --data FILE, several as one table with a column `split`"
    )


def report(
    root: Folder, splits: Mapping[str, Mapping[str, Sequence[Path]]], decided: bool, say: Say
) -> None:
    """Reports tables of labels next to class folders, which are not read.

    Args:
        splits: the images by split and class, from the folders.
        decided: whether an option has said that the folders hold the labels.

    Raises:
        DataError: a table gives another class to an image, and no option decides.
    """
    found = {file: rows for file in _tables(root) if (rows := labels_in(file))}
    if not found:
        return
    classes_of = {
        image: name
        for classes in splits.values()
        for name, images in classes.items()
        for image in images
    }
    names = set(classes_of.values())
    for file, rows in found.items():
        differ = [
            row
            for row in rows
            if row.label in names
            and classes_of.get(Path(os.path.normpath(file.parent / row.path)), row.label)
            != row.label
        ]
        if differ and not decided:
            raise DataError(
                f"{shown(file)} and the class folders next to it differ in "
                f"{counted(len(differ), 'image')}, such as {differ[0].path} ({differ[0].label} in "
                f"the table): --data {shown(file)} takes the labels from the table, --layout the "
                "classes from the folders (class, or split/class)"
            )
        say(
            f"{shown(file)} is a table of {counted(len(rows), 'label')} and is not read: the class "
            f"folders hold the labels. --data {shown(file)} reads it instead"
        )


def others(file: Path) -> list[Path]:
    """Other tables of labels in the folder of a table."""
    others = sorted(other for other in file.parent.iterdir() if _is_table(other) and other != file)
    return [other for other in others if labels_in(other)] if len(others) <= MOST else []


def labels_in(file: Path) -> list[Row]:
    """The rows of a file if it is a table of paths and labels that can be read; else none."""
    try:
        if file.stat().st_size > MOST_BYTES:
            return []
        return [row for row in read(file) if row.label]
    except (DataError, OSError):
        return []


def _tables(root: Folder) -> list[Path]:
    """The tables in a folder and in those directly in it; none where there are many."""
    found = [
        file
        for folder in (root, *root.folders.values())
        for file in (Path(item.path) for item in folder.others)
        if _is_table(file)
    ]
    return found if len(found) <= MOST else []


def _is_table(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
