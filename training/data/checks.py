"""Checks of a data set whose pixels are known: repeated images, small classes, what is left out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labelcurve.bundle import preprocess
from labelcurve.bundle.errors import DataError, ImageError
from labelcurve.bundle.text import counted, listed
from labelcurve.training.data.decoded.digests import AT_ONCE, Digests, of_image, word
from labelcurve.training.data.formats.tree import summary, worded
from labelcurve.training.data.source import LeftOut, Say
from labelcurve.training.data.split import Split

LISTED = 20

NAMED = 2
"""Files or folders that the line about what is left out names, for each reason."""


def report_conflicts(name: str, class_names: tuple[str, ...], train: Split, say: Say) -> None:
    """Reports training images with the same pixels under several classes: mostly mistakes."""
    rows = np.flatnonzero(_conflicting(train)).tolist()
    if rows:
        lines = (f"{train.where(i)} ({class_names[train.labels[i]]})" for i in rows)
        say(
            f"{name}: {counted(len(rows), 'train image')} with the same pixels as others under "
            f"another class:\n{block(lines, len(rows))}"
        )


def report_repeated(name: str, train: Split, say: Say) -> None:
    """Reports labelled images that are in a class more than once."""
    if len(train) < 2:
        return
    group = groups(train.digests)
    # Rows with the same pixels are in the order of their labels.
    same = (np.diff(group) == 0) & (np.diff(train.labels) == 0) & (train.labels[1:] >= 0)
    rows = (np.flatnonzero(same) + 1).tolist()
    if rows:
        examples = ", ".join(train.where(i) for i in rows[:NAMED])
        say(
            f"{name}: {counted(len(rows), 'train image')} with the same pixels as another of the "
            f"class: {examples}{' and others' if len(rows) > NAMED else ''}. Copies of a "
            "validation image do not train"
        )


def report_shared(
    name: str, class_names: tuple[str, ...], split: Split, test: Split, say: Say
) -> None:
    """Reports labelled training images whose pixels are in test, too."""
    found = in_test(split, test)
    rows = np.flatnonzero((found >= 0) & (split.labels >= 0))
    if not len(rows):
        return
    say(f"{name}: {counted(len(rows), 'train image')} also in test (same pixels)")
    differ = rows[test.labels[found[rows]] != split.labels[rows]].tolist()
    if differ:
        lines = (
            f"{split.where(i)} ({class_names[split.labels[i]]}) and {test.where(int(found[i]))} "
            f"({class_names[test.labels[found[i]]]})"
            for i in differ
        )
        say(f"{name}: {len(differ)} of them have another class there:\n{block(lines, len(differ))}")


def known_elsewhere(train: Split, test: Split) -> NDArray[np.bool_]:
    """Unlabelled training rows whose pixels are in test or have a label in train, [N].

    As unlabelled data they would show held-out images to the training.
    """
    unlabelled = train.labels < 0
    if not unlabelled.any():
        return unlabelled
    group = groups(train.digests)
    labelled = np.zeros(int(group[-1]) + 1, bool)
    labelled[group[~unlabelled]] = True
    return unlabelled & (labelled[group] | (in_test(train, test) >= 0))


def check_classes(
    data: str, class_names: tuple[str, ...], train: Split, test: Split | None, say: Say
) -> None:
    """Refuses classes with too few training images, and names those that the test split lacks.

    Args:
        train: at least two labelled images a class, one of them for validation.
        test: the test split that the data provides; else None.

    Raises:
        DataError: names the classes.
    """

    few = [f"{class_names[i]!r} ({n})" for i, n in enumerate(_counts(train, class_names)) if n < 2]
    if few:
        raise DataError(
            f"{data}: too few train images of {listed(few, LISTED)}: at least 2 a class are needed "
            "(one to train, one for validation)"
        )
    if test is None:
        return
    none = [repr(class_names[i]) for i, n in enumerate(_counts(test, class_names)) if not n]
    if none:
        say(
            f"{data}: the test split has no image of {listed(none, LISTED)}: metrics on it cover "
            f"{len(class_names) - len(none):,} of {len(class_names):,} classes"
        )


def _counts(split: Split, class_names: tuple[str, ...]) -> list[int]:
    counts = np.bincount(split.labels[split.labels >= 0], minlength=len(class_names))
    found: list[int] = counts.tolist()
    return found


def block(lines: Iterable[str], n: int) -> str:
    """The first of `n` lines, to stand indented below a message."""
    more = [f"and {n - LISTED} more"] if n > LISTED else []
    return "\n".join(f"  {line}" for line in [*islice(lines, LISTED), *more])


def report_left_out(name: str, left_out: tuple[LeftOut, ...], cache: Path, say: Say) -> None:
    """One line with the numbers by reason; each file is listed in a text file in the cache."""
    if not left_out:
        return
    counts = summary(left_out)
    text = "".join(f"{item.reason}\t{item.count}\t{item.path}\n" for item in left_out)
    file = cache / "left-out" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.tsv"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        which = f"; listed in {file}"
    except OSError:
        which = f": {listed((item.path for item in left_out), LISTED)}"
    each = [f"{worded(n, reason)}{_named(reason, left_out)}" for reason, n in counts.items()]
    say(f"{name}: left out: {', '.join(each)}{which}")


def _named(reason: str, left_out: tuple[LeftOut, ...]) -> str:
    """The paths that have a reason, in brackets, where they are few."""
    paths = [item.path for item in left_out if item.reason == reason]
    return f" ({', '.join(paths)})" if len(paths) <= NAMED else ""


def in_test(train: Split, test: Split) -> NDArray[np.int64]:
    """Finds for each training row a test row with the same pixels, [N]; -1 if there is none."""
    found = np.full(len(train), -1, np.int64)
    if not len(test):
        return found
    # By their first eight bytes before all of them, which takes less memory.
    there = np.concatenate([word(part, 0) for _, part in test.digests.parts()])
    for begin, part in train.digests.parts():
        first = word(part, 0)
        place = there.searchsorted(first).clip(max=len(there) - 1)
        likely = np.flatnonzero(there[place] == first)
        same = likely[part[likely] == test.digests[place[likely]]]
        found[begin + same] = place[same]
    return found


def _conflicting(train: Split) -> NDArray[np.bool_]:
    """Labelled rows whose pixels have another label in the same split, [N]."""
    labelled = train.labels >= 0
    if len(train) < 2:
        return np.zeros(len(train), bool)
    group = groups(train.digests)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    most = np.maximum.reduceat(train.labels, starts)
    none = np.iinfo(train.labels.dtype).max
    least = np.minimum.reduceat(np.where(labelled, train.labels, none), starts)
    conflicting: NDArray[np.bool_] = labelled & (least < most)[group]
    return conflicting


def groups(digests: Digests) -> NDArray[np.int64]:
    """A number for each row, the same for the same pixels, ascending; [N].

    Rows are in the order of their digests: equal ones are neighbours.
    """
    new = np.ones(len(digests), bool)
    for begin in range(0, len(digests), AT_ONCE):
        part = digests[slice(begin, begin + AT_ONCE + 1)]
        new[begin + 1 : begin + len(part)] = part[1:] != part[:-1]
    return np.cumsum(new) - 1


def unchanged(given: str, checked: Split) -> list[bytes]:
    """The files of the images, which must still be those that training read.

    Args:
        given: `--data`, as it was given.

    Raises:
        DataError: a file changed, or the cached pixels are damaged.
    """
    files = []
    for i in range(len(checked)):
        where, expected = checked.where(i), checked.images[i]
        try:
            file = checked.read(i)
            image = preprocess.decode(file, size=len(expected))
            same = np.array_equal(preprocess.resize(image, len(expected)), expected)
            (digest,) = checked.digests[np.array([i])]
            same_file = of_image(np.asarray(image)) == digest.tobytes()
            why = "has different pixels from when the run began"
        except ImageError as error:
            same, same_file, why = False, False, str(error)
        if same_file and not same:
            raise DataError(
                f"the cached pixels in {checked.digests.file.parent} are damaged: those of {where} "
                "are not what the file has. Nothing was published. Run the same command again "
                "with --clear-cache, which decodes them again, and --fresh: what was learned from "
                "them is of no use"
            )
        if not same:
            raise DataError(
                f"--data {given} changed during the run: {where}: {why}. Nothing was "
                "published. Put it back and run the same command again, which resumes from the "
                "checkpoint; or give it with --fresh to train on the images as they are now"
            )
        files.append(file)
    return files
