"""A folder of images as a source: with class folders, or without labels."""

from __future__ import annotations

import os
import re
from pathlib import Path

from labelcurve.bundle.errors import DataError
from labelcurve.bundle.preprocess import SUFFIXES
from labelcurve.bundle.text import counted
from labelcurve.training.data.formats import table_search
from labelcurve.training.data.formats.layout import Arranged, Classes, arrange
from labelcurve.training.data.formats.split_names import Layout
from labelcurve.training.data.formats.tree import scan
from labelcurve.training.data.source import (
    REPEATED,
    UNLABELLED,
    LeftOut,
    Say,
    Source,
    name_of,
    of_files,
    resolved,
    shown,
)

MASK = re.compile(r"(?i)(.+?)[-_ ](?:masks?|seg|segmentation|gt|overlay|depth)(?:[-_ ]?\d+)?")
"""Names of images that are made from another, whose name comes first."""


def folder(path: Path, say: Say, layout: Layout = "auto", out: Path | None = None) -> Source:
    """A folder of class folders, or of splits with class folders in each.

    Args:
        out: the folder that models are written to, if it lies below.

    Raises:
        DataError: it is not clear which images are of which class.
    """
    root = scan(path, say, out)
    found = arrange(root, layout, say)
    class_names = tuple(found.splits["train"])
    if len(class_names) < 2:
        raise DataError(
            f"{shown(path)}: one class folder, {class_names[0]!r}: at least two are needed, "
            f"one folder per class with its images inside{table_search.mentioned(root)}"
        )
    _leave_repeated(found)
    _report_masks(shown(path), found, say)
    table_search.report(root, found.splits, layout != "auto", say)
    splits = use_validation(shown(path), found.splits, say)
    if "test" in splits:
        _check_known(path, splits)
    return _source(path, class_names, splits, found)


def use_validation(name: str, splits: dict[str, Classes], say: Say) -> dict[str, Classes]:
    """Validation images are test images where there are none, else they join the training ones."""
    splits = dict(splits)
    validation = splits.pop("validation", None)
    if validation is None:
        return splits
    n = sum(len(images) for images in validation.values())
    if "test" not in splits:
        say(f"{name}: no test split, so the validation split is test: {counted(n, 'image')}")
        return {**splits, "test": validation}
    unknown = sorted(set(validation) - set(splits["train"]))
    if unknown:
        raise DataError(
            f"{name}: the validation split has classes that train has not: {', '.join(unknown)}"
        )
    say(
        f"{name}: the validation split ({counted(n, 'image')}) joins the training images, of which "
        "a tenth is held out for validation"
    )
    train = {
        label: sorted(images + validation.get(label, []))
        for label, images in splits["train"].items()
    }
    return {**splits, "train": train}


def unlabelled(path: Path, say: Say, option: str = "--data") -> Source:
    """Every image below a folder, whatever its folders are called; of several ways to a file, by
    links, one is read.

    Args:
        option: that named it, for messages.

    Raises:
        DataError: it is not a folder, or contains no image.
    """
    if not path.is_dir():
        raise DataError(f"{option} {path}: with --unlabelled it must be a folder of images")
    found = scan(path, say)
    paths = found.below()
    if not paths:
        raise DataError(f"{path} holds no image ({', '.join(sorted(SUFFIXES))})")
    first = dict(zip(reversed(resolved(paths)), reversed(paths), strict=True))
    once = sorted(first.values())
    again = [LeftOut(shown(image), REPEATED) for image in sorted({*paths} - {*once})]
    left_out = found.left_out() + again
    return _source(path, (), {}, Arranged(unlabelled=once, left_out=left_out))


def _report_masks(name: str, found: Arranged, say: Say) -> None:
    """Reports images of classes that may be masks: `1_mask.png` next to `1.png`."""
    images = [i for classes in found.splits.values() for each in classes.values() for i in each]
    stems = {image.with_suffix("") for image in images}
    masks = [
        image
        for image in images
        if (named := MASK.fullmatch(image.stem)) and image.with_name(named[1]) in stems
    ]
    if masks:
        say(
            f"{name}: {counted(len(masks), 'image')} of the classes named like a mask of another, "
            f"as {shown(masks[0])}: if they are not photos, move them out of the class folders"
        )


def _check_known(path: Path, splits: dict[str, Classes]) -> None:
    only_test = sorted(set(splits["test"]) - set(splits["train"]))
    if only_test:
        only_train = sorted(set(splits["train"]) - set(splits["test"]))
        raise DataError(
            f"{shown(path)}: train/ and test/ have different classes: only in train/ "
            f"{only_train or '-'}, only in test/ {only_test}. Give both the same class folders"
        )


def _leave_repeated(found: Arranged) -> None:
    """Leaves out the links to folders that are read anyway.

    Raises:
        DataError: it would be in two classes or splits.
    """
    known: dict[str, tuple[str, str, Path]] = {}
    for split, classes in found.splits.items():
        for name, images in classes.items():
            again = set()
            for folder in sorted({image.parent for image in images}):
                first = known.setdefault(os.path.realpath(folder), (split, name, folder))
                if first[:2] != (split, name):
                    raise DataError(
                        f"{shown(folder)} and {shown(first[2])} are the same folder, by a link, "
                        "and would be two classes or splits: remove one of them"
                    )
                if first[2] != folder:
                    again.add(folder)
            reason = "images read already, through a link to their folder"
            found.left_out += [LeftOut(shown(i), reason) for i in images if i.parent in again]
            classes[name] = [image for image in images if image.parent not in again]


def _source(
    path: Path, class_names: tuple[str, ...], splits: dict[str, Classes], found: Arranged
) -> Source:
    index = {name: number for number, name in enumerate(class_names)}
    files: dict[str, list[tuple[Path, int]]] = {}
    for split, classes in splits.items():
        files[split] = [(file, index[name]) for name in classes for file in classes[name]]
    if found.unlabelled:
        files.setdefault("train", []).extend((file, UNLABELLED) for file in found.unlabelled)
    return of_files(name_of(path), class_names, files, found.left_out, below=path)
