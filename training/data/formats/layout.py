"""Assignment of images to splits and classes by the names and depths of their folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labelcurve.bundle.errors import DataError
from labelcurve.bundle.preprocess import SUFFIXES
from labelcurve.bundle.text import counted
from labelcurve.training.data.class_names import class_name, code_points, report_alike
from labelcurve.training.data.formats import split_names
from labelcurve.training.data.formats.recognition import (
    EXPECTED,
    LISTED,
    listed,
    recognise,
    unwrapped,
)
from labelcurve.training.data.formats.split_names import Layout
from labelcurve.training.data.formats.table_search import mentioned
from labelcurve.training.data.formats.tree import Folder, summary, worded
from labelcurve.training.data.source import LeftOut, Say, shown

Classes = dict[str, list[Path]]


@dataclass
class Arranged:
    """A folder's images by split and class."""

    splits: dict[str, Classes] = field(default_factory=dict)
    unlabelled: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def arrange(root: Folder, layout: Layout, say: Say) -> Arranged:
    """Assigns the images below a folder to splits and classes.

    Args:
        layout: what the folders mean; `auto` finds out, or refuses where that is not clear.

    Raises:
        DataError: the folders can be read in more than one way, or in none.
    """
    found = Arranged(left_out=root.left_out())
    _leave(found, root.images, "images outside the class folders")
    folders = _without_pools(root, found, say)
    family = split_names.family(name for name, inner in folders.items() if inner)
    if layout == "auto":
        layout = recognise(root, folders, family, say)
    if layout == "class":
        found.splits["train"] = _classes(root, folders, found, say)
    elif layout == "split/class":
        _split_folders(root, folders, family, found, say)
    else:
        _class_first(root, folders, found, say)
    return found


def _without_pools(folder: Folder, found: Arranged, say: Say) -> dict[str, Folder]:
    """The folders in one but those of unlabelled images, which are added to what was found."""
    rest = {}
    for name, inner in folder.folders.items():
        if split_names.of_folder(name) != ("unlabelled", ""):
            rest[name] = inner
            continue
        images = inner.below()
        found.unlabelled += images
        if below := inner.with_images():
            say(
                f"{shown(inner.path)}: {counted(len(images), 'image')} without labels, whatever "
                f"the folders in it are called ({listed(below)})"
            )
    return rest


def _split_folders(
    root: Folder, folders: dict[str, Folder], family: Mapping[str, str], found: Arranged, say: Say
) -> None:
    by_split: dict[str, list[str]] = {}
    for name, split in family.items():
        by_split.setdefault(split, []).append(name)
    twice = next((names for names in by_split.values() if len(names) > 1), None)
    if twice:
        raise DataError(
            f"{shown(root.path)}: {listed(twice)} are the same split by their names: leave one of "
            "them, or put their class folders together"
        )
    if "train" not in by_split:
        raise DataError(
            f"{shown(root.path)}: no folder is the training split by its name, such as train/; "
            f"there are {listed(folders) or 'no folders'}. {EXPECTED}"
        )
    beside = {name: inner for name, inner in folders.items() if name not in family}
    _check_one_data_set(root, family, beside)
    for name, inner in beside.items():
        if split_names.of_folder(name) and not inner:
            say(f"{shown(inner.path)} holds no image")
        reason = "images in folders next to the splits"
        _not_used(found, inner, reason, "the folder's name is not that of a split", say)
    for split, (name,) in by_split.items():
        inner = unwrapped(folders[name])
        if split != "train" and not inner.with_images():
            reason = f"images in {name}/ without a class folder"
            _not_used(found, inner, reason, "they are in no class folder", say)
            continue
        _leave(found, inner.images, "images outside the class folders")
        classes = _without_pools(inner, found, say)
        if like := [name for name in classes if (split_names.of_folder(name) or (0, 1))[1] == ""]:
            say(f"{shown(inner.path)}: {listed(like)} is read as a class, since it lies in a split")
        found.splits[split] = _classes(inner, classes, found, say)


def _check_one_data_set(root: Folder, family: Mapping[str, str], beside: dict[str, Folder]) -> None:
    """Several folders may form the training split if none has exactly its name."""
    train = [name for name, split in family.items() if split == "train"]
    plain = split_names.of_folder(train[0]) == ("train", "")
    rivals = [
        name
        for name, inner in beside.items()
        if inner and (split_names.of_folder(name) or ("",))[0] == "train"
    ]
    if rivals and not plain:
        raise DataError(
            f"{shown(root.path)}: {listed(train + rivals)} are each the training split of a data "
            "set by their names: put each data set into a separate folder"
        )


def _not_used(found: Arranged, folder: Folder, reason: str, why: str, say: Say) -> None:
    """Leaves the images of a folder out, and names the folder."""
    if images := folder.below():
        _leave(found, images, reason)
        say(
            f"{shown(folder.path)}: {counted(len(images), 'image')} not used, since {why} "
            f"(--unlabelled {shown(folder.path)} learns from them without labels)"
        )


def _class_first(root: Folder, folders: dict[str, Folder], found: Arranged, say: Say) -> None:
    by_split: dict[str, dict[str, Folder]] = {}
    for name, folder in folders.items():
        _leave(found, folder.images, "images in no folder of a split")
        for inner_name, inner in folder.with_images().items():
            split, rest = split_names.of_folder(inner_name) or ("", "")
            if not split or rest:
                _leave(found, inner.below(), "images in no folder of a split")
            elif split == "unlabelled":
                found.unlabelled += inner.below()
            else:
                of_class = by_split.setdefault(split, {}).setdefault(name, Folder(folder.path))
                of_class.images += inner.images
                of_class.folders |= {f"{inner_name}/{n}": deep for n, deep in inner.folders.items()}
    if "train" not in by_split:
        raise DataError(f"{shown(root.path)}: no class folder holds a folder train/. {EXPECTED}")
    for of_split, classes in by_split.items():
        found.splits[of_split] = _classes(root, classes, found, say)


def _classes(root: Folder, folders: dict[str, Folder], found: Arranged, say: Say) -> Classes:
    """The images of each class folder; names that differ only in Unicode's forms are one class."""
    classes: Classes = {}
    spelt: dict[str, list[str]] = {}
    deeper: list[str] = []
    for original, folder in folders.items():
        try:
            name = class_name(os.fsencode(original).decode())
        except UnicodeDecodeError as error:
            raise DataError(
                f"{shown(folder.path)}: the name of this class folder is not UTF-8: rename it"
            ) from error
        images = folder.below()
        if not images:
            raise DataError(_no_image(folder))
        deeper += [f"{original}/{inner}" for inner in unwrapped(folder).with_images()]
        classes.setdefault(name, []).extend(images)
        spelt.setdefault(name, []).append(original)
    for name, originals in spelt.items():
        if len(originals) > 1:
            forms = " and ".join(f"{o!r} ({code_points(o)})" for o in originals)
            say(f"{shown(root.path)}: {forms} are read as one class, {name!r}")
    report_alike(shown(root.path), classes, say)
    if deeper:
        say(
            f"{shown(root.path)}: images in folders within a class folder are of that class "
            f"({listed(deeper)})"
        )
    if not classes:
        kinds = _kinds(found.left_out)
        raise DataError(
            f"{shown(root.path)} holds no class folder: it should hold one folder per class with "
            f"its images inside ({', '.join(sorted(SUFFIXES))}), or Parquet files with a column "
            "`image` and a column `label`"
            + (f". Found: {kinds}" if kinds else "")
            + ". For images that lie together, a table gives the classes (--data labels.csv); "
            f"`labelcurve pretrain --unlabelled` trains on images without classes{mentioned(root)}"
        )
    return {name: sorted(classes[name]) for name in sorted(classes)}


def _no_image(folder: Folder) -> str:
    kinds = _kinds(folder.left_out())
    return (
        f"{shown(folder.path)}: the class folder holds no image ({', '.join(sorted(SUFFIXES))})"
        f"{f', but {kinds}' if kinds else ''}. Put images in, or move it out of --data if it is no "
        "class"
    )


def _kinds(left_out: Iterable[LeftOut]) -> str:
    """What is not used, and how much of it."""
    return ", ".join([worded(n, reason) for reason, n in summary(left_out).items()][:LISTED])


def _leave(found: Arranged, images: Iterable[Path], reason: str) -> None:
    found.left_out += [LeftOut(shown(image), reason) for image in images]
