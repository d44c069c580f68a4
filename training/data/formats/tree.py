"""The images below a folder, and everything else there with the reason why it is not used."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from labelcurve.bundle.errors import DataError
from labelcurve.bundle.files import SYSTEM_FOLDERS
from labelcurve.bundle.preprocess import OTHER_SUFFIXES, SUFFIXES
from labelcurve.training.data.source import LeftOut, Say, shown

TEXTS = frozenset((".txt", ".json", ".xml", ".csv", ".md", ".html", ".yaml", ".yml", ".npy"))
"""Extensions of files that are certainly not images: their content is not read."""

SYSTEM = {
    **dict.fromkeys(SYSTEM_FOLDERS, "files in system folders"),
    "@eadir": "thumbnails (@eaDir)",
}
"""Folders that a system puts there, in lower case, and what their files are called."""

SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))

ARCHIVES = frozenset((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"))

CONVERT = "a format that is not read: convert to JPEG or PNG"

_IMAGE_STARTS = re.compile(rb"(?s)\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP|GIF8[79]a")


@dataclass
class Folder:
    """A folder with what is visible below it."""

    path: Path
    images: list[Path] = field(default_factory=list)
    """Directly in it, in order."""
    folders: dict[str, Folder] = field(default_factory=dict)
    """By name, in order; those without any image too."""
    others: list[LeftOut] = field(default_factory=list)
    """Directly in it, and not used."""

    def below(self) -> list[Path]:
        """All images at any depth, in order."""
        return sorted(image for folder in self.walk() for image in folder.images)

    def walk(self) -> Iterator[Folder]:
        """This folder and all below it."""
        yield self
        for inner in self.folders.values():
            yield from inner.walk()

    def left_out(self) -> list[LeftOut]:
        """Returns what is not used, at any depth."""
        return [item for folder in self.walk() for item in folder.others]

    def with_images(self) -> dict[str, Folder]:
        """The folders in it that hold an image at any depth."""
        return {name: inner for name, inner in self.folders.items() if inner}

    def __bool__(self) -> bool:
        """Returns whether it holds an image at any depth."""
        return bool(self.images) or any(self.folders.values())


def scan(root: Path, say: Say | None, out: Path | None = None) -> Folder:
    """Reads a folder; links are followed, except those that lead back up.

    A link to an image that leads nowhere is kept: decoding reports it as unreadable.

    Args:
        say: receives a line for each folder of this program's results, which are not read. None
            where a table names the images, so that those among results are no class, and folders
            that cannot be read are left out.
        out: the folder that models are written to, if it lies below.

    Raises:
        DataError: a folder cannot be read, or holds both images and models (unless `say` is None).
    """
    return _scan(root, frozenset(), None if out is None else out.resolve(), say)


def _scan(
    path: Path, above: frozenset[tuple[int, int]], out: Path | None, say: Say | None
) -> Folder:
    found = Folder(path)
    try:
        above = above | {_identity(path)}
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            place, name = Path(entry.path), entry.name.lower()
            if _is_folder(entry):
                if entry.name.startswith("."):
                    found.others.append(_whole(place, "hidden folders", "images in hidden folders"))
                elif name in SYSTEM:
                    found.others.append(_whole(place, SYSTEM[name], SYSTEM[name]))
                elif _identity(place) in above:
                    found.others.append(LeftOut(shown(place), "links back to a folder above"))
                elif _is_output(place, out):
                    if say is not None:
                        _check_output(place)
                        say(f"{shown(place)}: holds results of this program, not images: not read")
                else:
                    found.folders[entry.name] = _scan(place, above, out, say)
            elif (reason := _reason(place)) is None:
                found.images.append(place)
            else:
                found.others.append(LeftOut(shown(place), reason))
    except OSError as error:
        if error.filename is None:  # of `say`, whose reader is gone
            raise
        if say is not None:
            unread(error)
        found.others.append(LeftOut(shown(path), "folders that cannot be read"))
    return found


def _identity(folder: Path) -> tuple[int, int]:
    """Device and number of a folder."""
    found = folder.stat()
    return found.st_dev, found.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links that lead to each other
        return False


def _reason(file: Path) -> str | None:
    """Why a file is not an image that can be read; None where it is one, by its ending."""
    suffix = file.suffix.lower()
    if file.name.startswith("."):
        return "hidden files"
    if file.name.lower() in SYSTEM_FILES:
        return "system files"
    if suffix in SUFFIXES:
        return None
    if suffix in OTHER_SUFFIXES:
        return f"{suffix} ({CONVERT})"
    if suffix in ARCHIVES:
        return f"{suffix} (an archive: unpack it)"
    if file.is_symlink() and not file.exists():
        return "broken links"
    if suffix not in TEXTS and _begins_as_image(file):
        return "images without an image's ending (rename them)"
    return suffix or "without an ending"


def _begins_as_image(file: Path) -> bool:
    try:
        if not file.is_file():
            return False
        with file.open("rb") as opened:
            return _IMAGE_STARTS.match(opened.read(12)) is not None
    except OSError:
        return False


def _whole(folder: Path, reason: str, with_images: str) -> LeftOut:
    """A folder that is left out; counted are its images, or the folder where it has none."""
    files = [Path(base, name) for base, _, names in os.walk(folder) for name in names]
    images = sum(file.suffix.lower() in SUFFIXES for file in files)
    return LeftOut(shown(folder), with_images if images else reason, max(images, 1))


def _is_output(folder: Path, out: Path | None) -> bool:
    """Returns whether this program has written models or a report there, or will."""
    if out is not None and folder.resolve() == out:
        return True
    try:
        inner = [Path(entry.path) for entry in os.scandir(folder) if _is_folder(entry)]
        return any(place.name == ".runs" for place in inner) or any(
            (place / "current" / "manifest.json").is_file() or _is_report(place)
            for place in (folder, *inner)
        )
    except OSError:  # the scan of it says so
        return False


def _is_report(folder: Path) -> bool:
    """Returns whether `bench` has written its report there, with plots."""
    return (folder / "report.json").is_file() and (folder / "report.html").is_file()


def _check_output(folder: Path) -> None:
    for base, folders, names in os.walk(folder):
        inner = Path(base)
        if (inner / "current").exists() or _is_report(inner):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        images = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
        if images:
            raise DataError(
                f"{shown(inner)} holds images, and models are written to {shown(folder)}: name "
                "another folder with --out, so that a class is not taken for models"
            )


def unread(error: OSError) -> NoReturn:
    """Raises the DataError of a folder that cannot be read."""
    raise DataError(
        f"{shown(Path(error.filename))} cannot be read: {error.strerror} for user {os.geteuid()}. "
        "Change its mode, or run as its owner (docker: --user)"
    ) from error


def worded(n: int, reason: str) -> str:
    """`3 hidden files`, `1 hidden file`."""
    if n == 1:
        reason = re.sub(r"\b(file|folder|image|link|thumbnail)s\b", r"\1", reason, count=1)
    return f"{n:,} {reason}"


def summary(left_out: Iterable[LeftOut]) -> dict[str, int]:
    """The number of files by reason, most first."""
    counts: Counter[str] = Counter()
    for item in left_out:
        counts[item.reason] += item.count
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
