"""Assignment of Parquet files to splits by the Hugging Face Hub's rules."""

from __future__ import annotations

import os
import re
from pathlib import Path

from labelcurve.bundle.errors import DataError
from labelcurve.bundle.text import listed
from labelcurve.training.data.formats import split_names
from labelcurve.training.data.formats.tree import SYSTEM, unread
from labelcurve.training.data.source import LeftOut, Say, shown

LISTED = 5


def files_below(path: Path) -> list[Path]:
    """The Parquet files at any depth, except hidden ones, in order.

    Links to folders are followed after all else, and no folder is read twice.
    """
    found = []
    seen: set[str] = set()
    waiting = [path]
    while waiting:
        for folder, folders, names in os.walk(waiting.pop(0), onerror=unread):
            folders[:] = [n for n in folders if not n.startswith(".") and n.lower() not in SYSTEM]
            if (place := os.path.realpath(folder)) in seen:
                folders.clear()
                continue
            seen.add(place)
            inner = (Path(folder, name) for name in sorted(folders))
            try:
                waiting += [each for each in inner if each.is_symlink()]
            except OSError as error:
                unread(error)
            found += [
                Path(folder, name)
                for name in names
                if name.lower().endswith(".parquet") and not name.startswith(".")
            ]
    return sorted(found)


def by_split(path: Path, say: Say) -> tuple[dict[str, list[Path]], list[LeftOut]]:
    """The files of each split (`train`, and `test`, `unlabelled` where there are such).

    The name of a split stands in the name of a file or of one of its folders, between characters
    other than letters. Without any such name all files are train. Validation files become test if
    there are no test files, else they join train.

    Raises:
        DataError: several configurations, missing shards, or no training file.
    """
    _report_configurations(path, say)
    files = files_below(path)
    named = {file: split_names.on_hub(file.relative_to(path).parts) for file in files}
    left_out = []
    if any(named.values()):
        for file in [file for file, split in named.items() if split is None]:
            del named[file]
            left_out.append(LeftOut(shown(file), "Parquet files of no split by their names"))
    _check_one_configuration(path, named)
    found: dict[str, list[Path]] = {}
    for file, split in named.items():
        found.setdefault(split[0] if split else "train", []).append(file)
    _check_shards(path, found)
    if "train" not in found:
        raise DataError(
            f"{shown(path)}: no Parquet file of a train split among "
            f"{listed((file.name for file in files), LISTED)}: name it train-....parquet"
        )
    validation = found.pop("validation", [])
    names = listed((file.name for file in validation), LISTED)
    if validation and "test" in found:
        say(
            f"{shown(path)}: the validation files ({names}) join the training files, of whose rows "
            "a tenth is held out for validation"
        )
        found["train"] += validation
    elif validation:
        say(f"{shown(path)}: no test split, so the validation files are test ({names})")
        found["test"] = validation
    return found, left_out


def _report_configurations(path: Path, say: Say) -> None:
    """Warns of a data set card of the Hub, which may assign files to splits by other rules."""
    try:
        card = (path / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    front = re.match(r"(?s)\s*---\s*\n(.*?)\n---", card)
    if front and re.search(r"(?m)^configs\s*:", front[1]):
        say(
            f"{shown(path / 'README.md')} has `configs:`, which is not read: the split of each "
            "file is taken from its name"
        )


def _check_one_configuration(
    path: Path, named: dict[Path, tuple[split_names.SplitName, int] | None]
) -> None:
    """Refuses several configurations: each is a data set, in the folder above its splits."""
    folders = set()
    for file, split in named.items():
        parts = file.relative_to(path).parts
        folders.add("/".join(parts[: split[1] if split else len(parts) - 1]))
    if len(folders) > 1:
        names = listed(sorted(folder or "." for folder in folders), LISTED)
        example = shown(path / max(folders))
        raise DataError(
            f"{shown(path)} holds several data sets (on the Hub: configurations), in {names}: "
            f"name one with --data, such as {example}"
        )


def _check_shards(path: Path, found: dict[str, list[Path]]) -> None:
    """The number of files that the names give, `train-00000-of-00003`, must be there, each once."""
    there: dict[tuple[Path, str, int], set[int]] = {}
    first: dict[tuple[Path, str], tuple[Path, int]] = {}
    for file in (file for files in found.values() for file in files):
        # datasets writes a hash of each shard after the numbers.
        if shard := re.fullmatch(r"(.*-)(\d{5})-of-(\d{5})(-[0-9a-f]+)?\.parquet", file.name):
            number, count = int(shard[2]), int(shard[3])
            other, counted = first.setdefault((file.parent, shard[1]), (file, count))
            numbers = there.setdefault((file.parent, shard[1], count), set())
            if counted != count or number in numbers:
                raise DataError(
                    f"{shown(file)} and {shown(other)} belong to different versions of the same "
                    "rows by their names: remove the files of one of them"
                )
            numbers.add(number)
    missing = [
        f"{before}{number:05d}-of-{count:05d}.parquet"
        for (_, before, count), numbers in there.items()
        for number in range(count)
        if number not in numbers
    ]
    if missing:
        raise DataError(
            f"{shown(path)}: files are missing that the names of the others count: "
            f"{listed(missing, LISTED)}. Add them, or rename the others without -of-"
        )
