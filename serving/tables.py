"""Tables written by `classify`: all answers, or the accepted and the uncertain ones separately."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from labelcurve.bundle import files
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.text import shown
from labelcurve.serving.models.answer import Class

ACCEPTED, ASK = "accepted.csv", "ask.csv"


@dataclass(frozen=True)
class Answer:
    """Result for one file."""

    path: Path
    classes: Sequence[Class]
    """Best first; empty where there is an error."""
    error: str | None = None
    accepted: bool | None = None
    """Whether it needs no check by a person; None without `--accept`."""
    set: Sequence[str] | None = None
    """Classes that contain the true one with the requested coverage; None without `--set`."""

    @property
    def name(self) -> str:
        """The path as text, on one line: names need not be UTF-8."""
        return shown(self.path)


Write = Callable[[Answer], None]


@contextmanager
def everything(path: Path | None, columns: int, *, accept: bool, sets: bool) -> Iterator[Write]:
    """A table of all files, if a path is given: complete or not there.

    Args:
        path: the CSV file.
        columns: classes of each row.
        accept: whether there is a column that says what was accepted.
        sets: whether there is a column of sets, each a JSON list.

    Raises:
        LabelcurveError: it cannot be written, or exists.
    """
    if path is None:
        yield lambda answer: None
        return
    check_new(path)
    text = StringIO(newline="")
    rows = csv.writer(text)
    ranks = ["", *(f"_{i}" for i in range(2, columns + 1))]
    more = [*(["accepted"] * accept), *(["set"] * sets)]
    header = [f"{n}{r}" for r in ranks for n in ("label", "score")]
    rows.writerow(["path", *header, *more, "error"])

    def write(answer: Answer) -> None:
        cells = [cell for c in answer.classes for cell in (c["label"], c["score"])]
        cells += [""] * (2 * columns - len(cells))
        if accept:
            cells.append(_flag(answer.accepted))
        if sets:
            cells.append(_set(answer.set))
        rows.writerow([answer.name, *cells, answer.error or ""])

    yield write
    content = text.getvalue().encode()
    try:
        if path.exists():  # a pipe or a device
            path.write_bytes(content)
        else:
            files.replace(path, content)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise LabelcurveError(
            f"cannot write --csv {path} ({error.strerror}): name a file elsewhere, or make room"
        ) from error


def check_new(path: Path) -> None:
    """Checks that no table is there yet, and that there is a folder for it.

    Raises:
        LabelcurveError: the path is a folder or a file, or its folder is missing.
    """
    if path.is_dir():
        raise LabelcurveError(f"--csv {path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise LabelcurveError(f"cannot write --csv {path}: there is no folder {path.parent}")
    if path.is_file():
        raise LabelcurveError(
            f"--csv {path} exists, and labels may be in it: name a new file, or remove it"
        )


def check_not_sorted(folder: Path) -> None:
    """Checks that no earlier tables of `sorted_out` are in a folder.

    Raises:
        LabelcurveError: one is.
    """
    for name in (ASK, ACCEPTED):
        if (folder / name).exists():
            raise LabelcurveError(
                f"--out {folder}: {name} is there, and labels may be in it: name a new folder, or "
                "remove it"
            )


@contextmanager
def sorted_out(folder: Path | None, *, sets: bool) -> Iterator[Write]:
    """`accepted.csv` and `ask.csv` in a folder, if one is given: complete or not there.

    Both have the columns path, label and score; `ask.csv`, where a person looks at each row, has
    the files that could not be used, too, with the error.

    Raises:
        LabelcurveError: they cannot be written.
    """
    if folder is None:
        yield lambda answer: None
        return
    more = [*(["set"] * sets)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".classify-", dir=folder) as temporary:
            paths = [Path(temporary) / name for name in (ACCEPTED, ASK)]
            with (
                paths[0].open("w", newline="", encoding="utf-8") as yes,
                paths[1].open("w", newline="", encoding="utf-8") as no,
            ):
                accepted, ask = csv.writer(yes), csv.writer(no)
                accepted.writerow(["path", "label", "score", *more])
                ask.writerow(["path", "label", "score", *more, "error"])

                def write(answer: Answer) -> None:
                    best = answer.classes[0] if answer.classes else None
                    row = [answer.name, *((best["label"], best["score"]) if best else ("", ""))]
                    row += [_set(answer.set)] * sets
                    if answer.accepted:
                        accepted.writerow(row)
                    else:
                        ask.writerow([*row, answer.error or ""])

                yield write
            for complete in paths:
                complete.replace(folder / complete.name)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise LabelcurveError(
            f"cannot write {ACCEPTED} and {ASK} to {folder} ({error.strerror}): name another "
            "folder with --out"
        ) from error


def _flag(value: bool | None) -> str:
    return "" if value is None else str(value).lower()


def _set(found: Sequence[str] | None) -> str:
    return "" if found is None else json.dumps(list(found), ensure_ascii=False)
