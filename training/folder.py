"""A folder of class folders as a source."""

from __future__ import annotations

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bundle.errors import DataError, UnreadableImage
from bundle.preprocess import SUFFIXES
from training.source import Rows, Say, Source, hash_file, name_of, watch


def folder(path: Path, say: Say) -> Source:
    """A folder of class folders, or `train/` and `test/` with class folders in each."""
    roots = {"train": path}
    if (path / "train").is_dir():
        roots = {"train": path / "train"}
        if (path / "test").is_dir():
            roots["test"] = path / "test"
        ignored = sorted(
            entry.name for entry in _visible(path) if entry.is_dir() and entry not in roots.values()
        )
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
            f"{split}/{p.relative_to(roots[split])} {h}" for p, h in zip(paths, hashes, strict=True)
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
    files = [f for f in sorted(path.rglob("*")) if not f.is_dir() and not _hidden(f, path)]
    paths = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not paths:
        raise DataError(f"{path} holds no image ({', '.join(sorted(SUFFIXES))})")
    if len(paths) < len(files):
        say(f"{path}: {len(files) - len(paths)} files without an image extension are ignored")
    changed = watch(paths)
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_hash, paths))
    files_of = _Files(paths)
    listing = [f"{p.relative_to(path)} {h}" for p, h in zip(paths, hashes, strict=True)]
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
    for entry in sorted(_visible(root)):
        if not entry.is_dir():
            continue
        # What is no folder: a link that leads nowhere is found unreadable later, not left out.
        files = [file for file in sorted(entry.rglob("*")) if not file.is_dir()]
        files = [file for file in files if not _hidden(file, entry)]
        classes[entry.name] = [file for file in files if file.suffix.lower() in SUFFIXES]
        other.update(f.suffix or f.name for f in files if f.suffix.lower() not in SUFFIXES)
        if not classes[entry.name]:
            raise DataError(
                f"{entry}: the class folder holds no image ({', '.join(sorted(SUFFIXES))}). "
                "Put images in, or remove the folder"
            )
    if not classes:
        raise DataError(
            f"{root} holds no class folder: it should hold one folder a class with its images "
            f"inside ({', '.join(sorted(SUFFIXES))}), or Parquet files with a column `image` and a "
            "column `label`"
        )
    if other:
        kinds = ", ".join(f"{n} {kind}" for kind, n in other.most_common(10))
        say(f"{root}: {other.total()} files without an image extension are ignored ({kinds})")
    return classes


def _visible(root: Path) -> list[Path]:
    return [entry for entry in root.iterdir() if not entry.name.startswith((".", "__MACOSX"))]


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


@dataclass(frozen=True)
class _Files:
    paths: list[Path]

    def read(self, i: int) -> bytes:
        try:
            return self.paths[i].read_bytes()
        except OSError as error:
            raise UnreadableImage(f"the file cannot be read: {error.strerror}") from error

    def where(self, i: int) -> str:
        return str(self.paths[i])


def _hash(path: Path) -> str:
    try:
        return hash_file(path)
    except DataError:
        return "unreadable"  # decoding says so, and counts it
