"""Images without labels in a folder of their own, added to a data set."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

from labelcurve.bundle.errors import DataError
from labelcurve.bundle.text import counted
from labelcurve.training.data.source import (
    REPEATED,
    UNLABELLED,
    LeftOut,
    Source,
    image_files,
    joined,
    resolved,
    shown,
)


def check_no_class(source: Source, more: Source, given: str, data: str) -> None:
    """Refuses a folder of images without labels that is a class of the data set at the same time.

    A folder that holds several classes is no mistake: its labelled images are skipped.

    Args:
        source: of class folders.
        more: of images without labels.
        given: the option that names these and its value.
        data: the value of `--data`.

    Raises:
        DataError: names both readings.
    """
    labels = {
        path: int(label)
        for rows in source.splits.values()
        for path, label in zip(resolved(rows.paths or ()), rows.labels.tolist(), strict=False)
    }
    paths = resolved(more.splits["train"].paths or ())
    found = {labels.get(path, UNLABELLED) for path in paths}
    if len(found) != 1 or found == {UNLABELLED}:
        return
    name = source.class_names[found.pop()]
    raise DataError(
        f"{given}: each of its {counted(len(paths), 'image')} is read as the class {name!r} of "
        f"--data {data}, too. If they have no label, move the folder out of "
        "--data, or rename it unlabelled/ there, which is read without labels; if it is a class, "
        "leave the option out or name another folder"
    )


def with_more(source: Source, more: Source) -> Source:
    """The data set with further images without labels; files that it has without one count once."""
    train, added = source.splits["train"], more.splits["train"]
    paths = added.paths or ()
    without = (train.labels == UNLABELLED).tolist()
    known = {p for p, none in zip(resolved(train.paths or ()), without, strict=False) if none}
    kept: list[int] = []
    again: list[LeftOut] = []
    for i, path in enumerate(resolved(paths)):
        if path in known:
            again.append(LeftOut(shown(paths[i]), REPEATED))
        else:
            kept.append(i)
    left_out = tuple(dict.fromkeys((*source.left_out, *more.left_out, *again)))
    if not kept:
        return replace(source, left_out=left_out)
    fingerprint = f"{source.fingerprint} {more.fingerprint}"
    if again:  # decoded rows are cached by number, so other rows need another fingerprint
        fingerprint += f" {kept}"
        added = image_files([paths[i] for i in kept], added.labels[kept])
    return replace(
        source,
        fingerprint=hashlib.sha256(fingerprint.encode()).hexdigest(),
        splits={**source.splits, "train": joined(train, added)},
        changed=partial(_either, source, more),
        left_out=left_out,
    )


def _either(first: Source, second: Source) -> list[Path]:
    return first.changed() + second.changed()
