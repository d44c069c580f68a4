"""The names of splits: in folders as people spell them, and in files as the Hub reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Layout = Literal["auto", "class", "split/class", "class/split"]
"""The things that the folders below `--data` are named after, from the outside in; deeper folders
belong to their class. `auto` finds out, or refuses."""

SplitName = Literal["train", "validation", "test", "unlabelled"]

_KEYWORDS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training", "trainval", "trn"),
    "validation": ("validation", "validate", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation", "tst"),
    "unlabelled": ("unlabelled", "unlabeled", "unsupervised"),
}
"""The first three as on the Hugging Face Hub (docs/hub/datasets-file-names-and-splits), and a few
more."""

_FILLING = "sets?|data|datasets?|images?|imgs?|photos?|pics?|pictures?|folder|splits?|samples"
_WORDS = {
    split: re.compile(rf"(?:{_FILLING})*(?:{'|'.join(words)})(?:{_FILLING})*")
    for split, words in _KEYWORDS.items()
}


def of_folder(name: str) -> tuple[SplitName, str] | None:
    """The split that a folder's name means, and what else is in the name.

    `Training`, `test-images` and `valSet` have nothing else; `seg_train` has `seg`. Case, digits
    and words such as `set` or `images` do not matter. None for the name of no split.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    found: set[SplitName] = set()
    rest = []
    for word in re.findall(r"[^\W\d_]+", spaced):
        split = next((split for split, known in _WORDS.items() if known.fullmatch(word)), None)
        if split is not None:
            found.add(split)
        elif not re.fullmatch(_FILLING, word):
            rest.append(word)
    if found == {"train", "validation"}:  # train_val, as VOC calls the two together
        found = {"train"}
    return (found.pop(), " ".join(rest)) if len(found) == 1 else None


def family(folders: Iterable[str]) -> dict[str, SplitName]:
    """The folders that are the splits of one data set by their names, each with its split.

    `train` and `test` are, whatever else is there. Names with an affix are splits if several
    share it: `seg_train`, `seg_test`. A plain name then belongs to them:
    `fruits_Train`, `TEST`. Of several such groups the first with the most splits is returned.
    """
    by_rest: dict[str, dict[str, SplitName]] = {}
    for name in folders:
        if (found := of_folder(name)) and found[0] != "unlabelled":
            by_rest.setdefault(found[1], {})[name] = found[0]
    plain = by_rest.pop("", {})
    if "train" in plain.values():
        return plain
    groups = []
    for group in by_rest.values():
        more = {name: split for name, split in plain.items() if split not in group.values()}
        if len(set((group | more).values())) > 1:
            groups.append(group | more)
    return max(
        groups,
        key=lambda group: ("train" in group.values(), len(set(group.values()))),
        default=plain,
    )


def of_value(value: str) -> SplitName | None:
    """The split that a cell of a table means; None for another word."""
    found = of_folder(value)
    return found[0] if found and not found[1] else None


def on_hub(parts: tuple[str, ...]) -> tuple[SplitName, int] | None:
    """The split of a file by the Hub's rules, from its path relative to the data set.

    A keyword counts between characters other than letters, first in the file's name, then in those
    of its folders, the nearest first: `train_data/test/0.parquet` is test.

    Returns:
        The split, and how many parts of the path stand before the one that names it; None where no
        part does.
    """
    for place in reversed(range(len(parts))):
        words = re.split(r"[-._ 0-9]+", parts[place].lower())
        for split, known in _KEYWORDS.items():
            if set(known) & set(words):
                return split, place
    return None
