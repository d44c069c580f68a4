"""Recognises what the folders below `--data` are named after, or refuses where it is not clear."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from labelcurve.bundle import text
from labelcurve.bundle.errors import DataError
from labelcurve.training.data.formats import split_names
from labelcurve.training.data.formats.split_names import Layout
from labelcurve.training.data.formats.table_search import mentioned
from labelcurve.training.data.formats.tree import Folder
from labelcurve.training.data.source import Say, shown

IMAGES = frozenset(("images", "image", "imgs", "img", "jpegimages", "photos"))
ANNOTATIONS = frozenset(
    (
        *("annotations", "annotation", "labels", "label", "masks", "mask", "segmentations"),
        *("bboxes", "boxes", "xml", "xmls", "imagesets", "trimaps", "ground_truth", "groundtruth"),
    )
)
"""Folders that together hold data for detection or segmentation, in lower case."""

PARTS = IMAGES | frozenset(
    (
        *("photo", "picture", "pic", "part", "parts", "batch", "chunk", "shard", "fold", "folder"),
        *("volume", "archive", "pictures", "pics", "data", "dataset", "subset", "set", "split"),
        *("upload", "export"),
    )
)
"""Words in the names of folders that hold a part of the images, each with a number."""

EXPECTED = (
    "Expected: one folder per class with its images inside (cat/1.jpg), or such folders in train/ "
    "and test/ (train/cat/1.jpg), or a table: --data labels.csv with the columns path and label"
)

LISTED = 6


def recognise(
    root: Folder, folders: dict[str, Folder], family: Mapping[str, str], say: Say
) -> Layout:
    """The layout of a folder.

    Args:
        folders: those in it that are not of unlabelled images.
        family: those of them that are splits by their names, each with its split.

    Raises:
        DataError: the folders can be read in more than one way, or in none.
    """
    _check_annotations(root)
    beside = {name: inner for name, inner in folders.items() if inner and name not in family}
    if not family:
        return _without_splits(root, beside, folders)
    train = [name for name, split in family.items() if split == "train"]
    names = listed(family)
    one_split = len(set(family.values())) == 1
    deep = bool(train) and all(unwrapped(folders[name]).with_images() for name in train)
    further = {name: inner for name, inner in beside.items() if unwrapped(inner).with_images()}
    if deep and not further and not (beside and one_split):
        for name in family:
            inner = unwrapped(folders[name])
            _check_depth(inner.path, inner.with_images(), "split/class")
        return "split/class"
    flat = not any(inner.with_images() for inner in folders.values())
    if flat and beside and one_split:
        say(
            f"{shown(root.path)}: {names} is read as a class like {listed(beside)}, since its "
            "images lie directly in it"
        )
        return "class"
    way = "If these are classes, say --layout class"
    if deep and not one_split:
        raise DataError(_beside_splits(root, names, further))
    splits = (
        f"{names} {'are splits by their names' if len(family) > 1 else 'is a split by its name'}"
    )
    if deep:
        found = f"{names} holds class folders, and next to it: {listed(beside)}"
        way += (
            f"; --layout split/class reads {names} alone. Rename another split to validation, test "
            "or unlabelled"
        )
    elif not train:
        found = f"{splits}, and none is train"
        way += ", else put the class folders of the training images into train/"
    else:
        found = f"{splits}, and the images are not in class folders"
    raise DataError(f"{shown(root.path)}: {found}. {way}. {EXPECTED}{mentioned(root)}")


def _beside_splits(root: Folder, names: str, further: dict[str, Folder]) -> str:
    examples = listed(_examples({name: unwrapped(inner) for name, inner in further.items()}))
    return (
        f"{shown(root.path)}: {names} are splits by their names, and next to them "
        f"{listed(further)} {'holds' if len(further) == 1 else 'hold'} images in folders, too "
        f"({examples}). Rename a further split to train, validation, test or unlabelled, and move "
        "another data set to a separate folder; --layout split/class reads nothing but "
        f"{names}"
    )


def _without_splits(root: Folder, folders: dict[str, Folder], every: dict[str, Folder]) -> Layout:
    if len(folders) == 1:
        ((name, only),) = folders.items()
        while not only.images and len(only.with_images()) == 1:
            (only,) = only.with_images().values()
        if inner := only.with_images():
            rest = listed(other for other in every if other != name)
            raise DataError(
                f"{shown(root.path)}: one class folder, {name!r}: at least two are needed"
                f"{f' ({rest} without any image)' if rest else ''}. "
                f"{shown(only.path)} holds {listed(inner)}: perhaps you mean that with --data"
            )
        return "class"  # which reports that one is too few
    inside = {name: _split_children(inner) for name, inner in folders.items()}
    split = [name for name, found in inside.items() if found]
    if folders and all(
        inside[name] == set(inner.with_images()) and not inner.images
        for name, inner in folders.items()
    ):
        if not any(unwrapped(deep).images for f in folders.values() for deep in f.folders.values()):
            raise DataError(
                f"{shown(root.path)}: each of {listed(folders)} holds splits with folders of their "
                f"own ({listed(_examples(folders))}), like several data sets: name one with "
                f"--data. If {listed(folders)} are the classes, say --layout class/split"
            )
        _check_parts(root.path, folders, "class/split")
        return "class/split"
    if split:
        raise DataError(
            f"{shown(root.path)}: {listed(split)} hold folders that are splits by their names "
            f"({listed(sorted(inside[split[0]]))}), and also other folders or images. If "
            f"all of that belongs to the class, say --layout class. {EXPECTED}"
        )
    _check_depth(root.path, folders, "class")
    return "class"


def _split_children(folder: Folder) -> set[str]:
    """The folders in one that are splits by their names, if there are several or one is train."""
    named = {name: split_names.of_folder(name) for name in folder.with_images()}
    found = {name: split[0] for name, split in named.items() if split and not split[1]}
    return set(found) if len(found) > 1 or "train" in found.values() else set()


def _check_depth(path: Path, folders: dict[str, Folder], layout: Layout) -> None:
    """Most images of each class folder one level below it: those may be no classes at all."""
    opened = [unwrapped(folder) for folder in folders.values()]
    if not opened or any(2 * len(folder.images) >= len(folder.below()) for folder in opened):
        _check_parts(path, folders, layout)
        return
    inner = sorted({name for folder in folders.values() for name in folder.with_images()})
    where = (
        f"most images of {listed(folders)} are in folders below"
        if any(folder.images for folder in opened)
        else f"none of {listed(folders)} holds an image directly; they are in folders below"
    )
    raise DataError(
        f"{shown(path)}: {where} ({listed(_examples(folders))}). If the outer ones are the "
        f"classes, say --layout {layout}. If the inner ones are ({listed(inner)}), move them up to "
        f"{shown(path)}, those of one name into one folder, or list all images in a table. "
        f"{EXPECTED}"
    )


def _check_parts(path: Path, folders: Iterable[str], layout: Layout) -> None:
    """Folders that are parts of one by their names: `images_001` and `images_002`, as archives are.

    A name is compared without its digits and single letters, so that a copy (`images (2)`) is a
    part, too.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in folders:
        alike.setdefault(tuple(re.findall(r"[^\W\d_]{2,}", name.lower())), []).append(name)
    for words, names in alike.items():
        if len(names) > 1 and not PARTS.isdisjoint(words):
            raise DataError(
                f"{shown(path)}: {listed(names)} are parts of one folder by their names, not "
                f"classes. A table says the class of each image; if they are classes, say --layout "
                f"{layout}. {EXPECTED}"
            )


def _examples(folders: dict[str, Folder]) -> list[str]:
    return [f"{name}/{inner}" for name, f in folders.items() for inner in list(f.with_images())[:2]]


def _check_annotations(root: Folder) -> None:
    """Refuses folders of images next to annotations: the layout of detection or segmentation.

    Raises:
        DataError: such folders exist.
    """
    for folder in root.walk():
        names = {name.lower(): name for name in folder.folders}
        images, notes = sorted(names.keys() & IMAGES), sorted(names.keys() & ANNOTATIONS)
        if images and notes:
            inner = folder.folders[names[images[0]]]
            way = (
                f"If the folders in {names[images[0]]}/ are classes "
                f"({listed(inner.with_images())}), say --data {shown(inner.path)}"
                if len(inner.with_images()) > 1
                else "If they are classes, say --layout class"
            )
            raise DataError(
                f"{shown(folder.path)} holds {names[images[0]]}/ next to {names[notes[0]]}/, the "
                "layout of data for detection or segmentation, which does not say the class of an "
                f"image. {way}. {EXPECTED}"
            )


def unwrapped(folder: Folder) -> Folder:
    """The innermost of folders that hold nothing but one of the same meaning.

    That is one of the same name or split (`seg_train/seg_train/`, as zip files leave it), or
    `images/`.
    """
    inner = folder.with_images()
    while not folder.images and len(inner) == 1:
        ((name, only),) = inner.items()
        outer, same = split_names.of_folder(folder.path.name), split_names.of_folder(name)
        alike = name.casefold() == folder.path.name.casefold() or name.lower() in IMAGES
        if not alike and (same is None or outer is None or same[0] != outer[0]):
            break
        folder, inner = only, only.with_images()
    return folder


def listed(names: Iterable[str]) -> str:
    """The first few names, for a message."""
    return text.listed((shown(Path(name)) for name in names), LISTED)
