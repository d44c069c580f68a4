"""A folder of class folders as a source."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bundle.errors import DataError, UnreadableImage
from bundle.preprocess import SUFFIXES
from training.source import (
    Rows,
    Say,
    Source,
    entries,
    hash_file,
    name_of,
    shown,
    unread,
    watch,
)


def folder(path: Path, say: Say) -> Source:
    """A folder of class folders, or `train/` and `test/` with class folders in each."""
    roots = {"train": path}
    inside = {entry.name: entry for entry, is_folder in entries(path) if is_folder}
    if "train" in inside:
        roots = {split: inside[split] for split in ("train", "test") if split in inside}
        ignored = sorted(set(inside) - set(roots))
        if ignored:
            say(f"{path}: only train/ and test/ are read, not {', '.join(ignored)}")
    found = {split: _class_files(root, say) for split, root in roots.items()}
    names = {split: tuple(files) for split, files in found.items()}
    if "test" in names and names["test"] != names["train"]:
        only_train = sorted(set(names["train"]) - set(names["test"]))
        only_test = sorted(set(names["test"]) - set(names["train"]))
        raise DataError(
            f"{path}: train/ and test/ have different classes: only in train/ {only_train or '-'}, "
            f"only in test/ {only_test or '-'}. Give both the same class folders"
        )
    if len(names["train"]) < 2:
        raise DataError(
            f"{roots['train']}: one class folder, {names['train'][0]!r}: at least two are needed, "
            "one folder a class with its images inside"
        )
    changed = watch(
        [file for files in found.values() for paths in files.values() for file in paths]
    )
    splits, listing = {}, []
    for split, files in found.items():
        paths = [file for of_class in files.values() for file in of_class]
        labels = np.arange(len(files), dtype=np.int32)
        labels = labels.repeat([len(of_class) for of_class in files.values()])
        files_of = _Files(paths)
        splits[split] = Rows(labels, files_of.read, files_of.where)
        with ThreadPoolExecutor() as pool:
            hashes = list(pool.map(_hash, paths))
        listing += [
            f"{split}/{shown(p.relative_to(roots[split]))} {h}"
            for p, h in zip(paths, hashes, strict=True)
        ]
    return Source(
        name=name_of(path),
        fingerprint=hashlib.sha256("\n".join(listing).encode()).hexdigest(),
        class_names=names["train"],
        size=32,
        splits=splits,
        changed=changed,
    )


def unlabelled(path: Path, say: Say) -> Source:
    """Every image below a folder, whatever its folders are called."""
    if not path.is_dir():
        raise DataError(f"--data {path}: with --unlabelled it must be a folder of images")
    files = _below(path)
    paths = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not paths:
        raise DataError(f"{path} holds no image ({', '.join(sorted(SUFFIXES))})")
    if len(paths) < len(files):
        say(f"{path}: {len(files) - len(paths)} files without an image extension are ignored")
    changed = watch(paths)
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_hash, paths))
    files_of = _Files(paths)
    listing = [f"{shown(p.relative_to(path))} {h}" for p, h in zip(paths, hashes, strict=True)]
    return Source(
        name=name_of(path),
        fingerprint=hashlib.sha256("\n".join(["unlabelled", *listing]).encode()).hexdigest(),
        class_names=(),
        size=32,
        splits={"train": Rows(np.zeros(len(paths), np.int32), files_of.read, files_of.where)},
        changed=changed,
    )


def _class_files(root: Path, say: Say) -> dict[str, list[Path]]:
    classes: dict[str, list[Path]] = {}
    other: Counter[str] = Counter()
    for entry, is_folder in entries(root):
        if not is_folder:
            continue
        try:
            name = os.fsencode(entry.name).decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{shown(entry)}: the name of this class folder is not UTF-8: rename it"
            ) from error
        files = _below(entry)
        classes[name] = [file for file in files if file.suffix.lower() in SUFFIXES]
        other.update(f.suffix or f.name for f in files if f.suffix.lower() not in SUFFIXES)
        if not classes[name]:
            raise DataError(
                f"{entry}: the class folder holds no image ({', '.join(sorted(SUFFIXES))}). "
                "Put images in, or remove the folder"
            )
    if not classes:
        raise DataError(
            f"{root} holds no class folder: it should hold one folder a class with its images "
            f"inside ({', '.join(sorted(SUFFIXES))}), or Parquet files with a column `image` and a "
            "column `label`. From images without classes `pretrain --unlabelled` learns"
        )
    if other:
        kinds = ", ".join(f"{n} {kind}" for kind, n in other.most_common(10))
        say(f"{root}: {other.total()} files without an image extension are ignored ({kinds})")
    return classes


def _below(root: Path) -> list[Path]:
    """Everything below a folder that is no folder, at any depth, in order, but what is hidden.

    A link that leads nowhere is there: it is found unreadable later, and not left out.

    Raises:
        DataError: a folder cannot be read: its images would be left out without a word.
    """
    found = []
    for folder, folders, names in os.walk(root, onerror=unread):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found)


@dataclass(frozen=True)
class _Files:
    paths: list[Path]

    def read(self, i: int) -> bytes:
        try:
            if not _regular(self.paths[i]):
                raise UnreadableImage("it is no file but a pipe, a socket or a device")
            return self.paths[i].read_bytes()
        except OSError as error:
            raise UnreadableImage(f"the file cannot be read: {error.strerror}") from error

    def where(self, i: int) -> str:
        return shown(self.paths[i])


def _regular(path: Path) -> bool:
    """Whether reading it ends: nobody may ever write into a pipe."""
    return stat.S_ISREG(path.stat().st_mode)


def _hash(path: Path) -> str:
    try:
        return hash_file(path) if _regular(path) else "unreadable"
    except (DataError, OSError):
        return "unreadable"  # decoding says so, and counts it
