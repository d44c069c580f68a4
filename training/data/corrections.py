"""Corrections of the labels: rows of the table that `audit` writes, dropped or relabelled.

They are applied to the training images alone. Without a test split the fifth that becomes test is
taken before, and images of test stay as they are: a test without the doubtful images would be too
easy, and one with suggested labels would agree with the model that suggested them.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from labelcurve.bundle.errors import DataError, near
from labelcurve.bundle.text import counted
from labelcurve.training.data.class_names import class_name
from labelcurve.training.data.decoded import digests
from labelcurve.training.data.source import UNLABELLED, Index, Say, at_home, shown
from labelcurve.training.data.split import Split

COLUMNS = ("path", "label", "suggested", "score", "reason")


@dataclass(frozen=True)
class Doubt:
    """One row of the table."""

    path: str
    """The image, as `identity` names it."""
    label: str
    """The class that the data gives it."""
    suggested: str
    """The class that it may be; empty where none is suggested."""
    score: float
    """Degree of doubt from 0 to 1."""
    reason: str
    """A kind, and what it rests on after a colon."""
    line: int = 0
    """Line number in the file, from 1."""


@dataclass(frozen=True)
class Corrected:
    """Training images after the corrections, and what was done."""

    train: Split
    test: Split
    """The test images with the same corrections: for a final model, which is not tested on them."""
    dropped: int = 0
    relabelled: int = 0


def identity(where: str, data: str) -> str:
    """The name of an image in the table: its path below `--data`, or below the table's folder.

    A row of a Parquet file is `FILE row NUMBER`; images that are not files are named as in
    messages, such as `cifar10 train row 5` and `digit 5`.

    Args:
        where: as a split names the image.
    """
    return where.removeprefix(_folder(data))


def _folder(data: str) -> str:
    """The beginning of the paths that `identity` leaves out."""
    path = at_home(data)
    return f"{shown(path.parent if path.is_file() else path)}/"


def write(rows: Iterable[Doubt]) -> str:
    """The table as CSV with a header, the rows in the given order."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows((r.path, r.label, r.suggested, f"{r.score:.4f}", r.reason) for r in rows)
    return text.getvalue()


def read(file: Path | None, flag: str) -> dict[str, Doubt]:
    """The rows of a table that `audit` wrote, edited or not, by image; none without a table.

    Raises:
        DataError: it cannot be read, or names an image twice; the message names the line.
    """
    if file is None:
        return {}
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{flag} {shown(file)} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{flag} {shown(file)} is not UTF-8 (byte {error.start}): save it as UTF-8"
        ) from error
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    missing = [name for name in ("path", "suggested") if name not in (reader.fieldnames or [])]
    if missing:
        raise DataError(
            f"{flag} {shown(file)} has no column {' and no '.join(map(repr, missing))}: expected "
            f"is the table that `labelcurve audit` writes, with the columns {','.join(COLUMNS)}"
        )
    rows: dict[str, Doubt] = {}
    try:
        for found in reader:
            line = reader.line_num
            if None in found or any(value is None for value in found.values()):
                raise DataError(
                    f"{flag} {shown(file)} line {line} has more or fewer cells than the header"
                )
            path = found["path"]
            if path in rows:
                raise DataError(
                    f"{flag} {shown(file)} line {line}: {path} is in line {rows[path].line}, too: "
                    "remove one of them"
                )
            rows[path] = Doubt(
                path,
                class_name(found.get("label", "")),
                class_name(found["suggested"]),
                0.0,
                found.get("reason", ""),
                line,
            )
    except csv.Error as error:
        raise DataError(f"{flag} {shown(file)} line {reader.line_num}: {error}") from error
    return rows


@dataclass(frozen=True)
class Corrections:
    """Corrections requested with `--drop` and `--relabel`."""

    data: str
    drop: Path | None = None
    relabel: Path | None = None

    def apply(
        self, class_names: Sequence[str], train: Split, test: Split, others: Sequence[str], say: Say
    ) -> Corrected:
        """The training images without those to drop, and with the labels that were suggested.

        Args:
            train: the training images, labelled or not.
            test: never changed; those that are named are counted.
            others: images that are known but not in a split, as unreadable ones.

        Raises:
            DataError: a table names an image or a class that the data does not have; the message
                names the line.
        """
        if self.drop is None and self.relabel is None:
            return Corrected(train, test)
        drop, new = read(self.drop, "--drop"), read(self.relabel, "--relabel")
        if both := sorted(drop.keys() & new.keys()):
            raise DataError(
                f"--relabel {self.relabel} line {new[both[0]].line}: {both[0]} is in --drop "
                f"{self.drop}, too (line {drop[both[0]].line}): remove it from one of them"
            )
        wanted = drop.keys() | new.keys()
        places = _places(train, self.data, wanted)
        tested = _places(test, self.data, wanted)
        known = places.keys() | tested.keys() | set(others)
        # Those of test, too: a final model learns from them as corrected.
        labels = {path: test.labels[row] for path, row in tested.items()}
        labels |= {path: train.labels[row] for path, row in places.items()}
        given = {path: class_names[n] for path, n in labels.items() if n != UNLABELLED}
        for flag, file, rows in (("--drop", self.drop, drop), ("--relabel", self.relabel, new)):
            self._check(flag, file, rows, known, given, class_names)
        if held := len(tested.keys() - places.keys()):
            say(
                f"{counted(held, 'test image')} named: left unchanged in the test, since one "
                "without the doubtful ones would be too easy; a final model learns from them as "
                "corrected, where there is one. Correct wrong labels in --data"
            )
        found, relabelled, dropped = self._corrected(train, class_names, drop, new)
        if new:
            without = sum(not row.suggested for row in new.values())
            said = f", {without:,} rows suggest no label and change nothing" if without else ""
            say(f"--relabel: {counted(relabelled, 'training image')} with another label now{said}")
        if drop:
            say(f"--drop: {counted(dropped, 'training image')} left out")
        own_test, _, _ = self._corrected(test, class_names, drop, new)
        return Corrected(found, own_test, dropped, relabelled)

    def _corrected(
        self,
        split: Split,
        class_names: Sequence[str],
        drop: Mapping[str, Doubt],
        new: dict[str, Doubt],
    ) -> tuple[Split, int, int]:
        """A split with other labels and without some rows; the numbers of both."""
        relabelled = 0
        if new:
            places = _places(split, self.data, new)
            split, relabelled = _relabelled(split, new, places, list(class_names))
        gone = sorted(_places(split, self.data, drop).values())
        if gone:
            kept = np.ones(len(split), bool)
            kept[gone] = False
            split = split.take(np.flatnonzero(kept))
        return split, relabelled, len(gone)

    def _check(
        self,
        flag: str,
        file: Path | None,
        rows: dict[str, Doubt],
        known: set[str],
        given: Mapping[str, str],
        class_names: Sequence[str],
    ) -> None:
        for row in rows.values():
            place = f"{flag} {file} line {row.line}"
            if row.path not in known:
                raise DataError(
                    f"{place}: no image of --data {self.data} is named {row.path!r}. The table "
                    "must be of the same data, with the paths as `labelcurve audit` wrote them"
                )
            if row.label and given.get(row.path, row.label) != row.label:
                raise DataError(
                    f"{place}: the label of {row.path} is {row.label!r} there and "
                    f"{given[row.path]!r} in --data {self.data}: the labels were changed since the "
                    "table was written. Run `labelcurve audit` again, or remove the line"
                )
            if flag == "--relabel" and row.suggested and row.suggested not in class_names:
                raise DataError(
                    f"{place}: {row.suggested!r} is not a class of --data {self.data}"
                    f"{near(row.suggested, class_names)}. Allowed: {', '.join(class_names)}, or "
                    "nothing, to leave the label as it is"
                )


def _places(split: Split, data: str, wanted: Iterable[str]) -> dict[str, int]:
    """The rows of those images that are named."""
    names = set(wanted)
    if not names:
        return {}
    folder = _folder(data)
    found = ((split.where(row).removeprefix(folder), row) for row in range(len(split)))
    return {name: row for name, row in found if name in names}


def _relabelled(
    train: Split, rows: dict[str, Doubt], places: dict[str, int], class_names: list[str]
) -> tuple[Split, int]:
    """The rows with their new labels, in the order that a data set with these labels has."""
    labels: Index = np.array(train.labels)
    for path, row in rows.items():
        if row.suggested and path in places:
            labels[places[path]] = class_names.index(row.suggested)
    changed = int((labels != train.labels).sum())
    found = replace(train, labels=labels)
    return found.take(digests.sort(train.digests[:], labels)), changed


def summary(rows: Iterable[Doubt]) -> dict[str, int]:
    """The number of rows by kind of reason, in the order of their first ones."""
    return dict(Counter(re.split("[:;]", row.reason)[0] for row in rows))
