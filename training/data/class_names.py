"""Names of classes: one spelling for each, and which names look like mistakes."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from labelcurve.bundle.errors import DataError
from labelcurve.bundle.text import listed
from labelcurve.training.data.source import Say

MISSING = frozenset(
    (
        *("nan", "NaN", "-nan", "-NaN", "null", "NULL", "None", "<NA>", "NA", "N/A", "n/a"),
        *("#N/A", "#N/A N/A", "#NA"),
    )
)
"""Cells that pandas reads as missing values (the default `na_values` of `read_csv`)."""

_STAND_IN = re.compile(r"(?i)\?+|(?:un|not[ _-]?)labell?ed|no[ _-]label")
"""Labels which mean that an image has none."""

_MINUS_ONE = re.compile(r"-1(?:\.0*)?")
"""What many programs write for a missing label."""

_NUMBER = re.compile(r"[+-]?\d+(?:\.0*)?")

_DOUBTFUL = frozenset(
    (
        *("-", "--", "unknown", "undefined", "undecided", "unsure", "not sure", "tbd", "todo"),
        *(name.casefold() for name in MISSING),
    )
)
"""Words, in lower case, that may be meant as a class or stand for a missing label."""

_SEPARATORS = re.compile(r"[|;,]")

_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, halves of characters, and ends of lines."""

_COPY = re.compile(r"^copy of | ?\(\d+\)$|[-_ ]+copy(?: ?\(?\d+\)?)?$")
"""Suffixes that file managers and cloud drives add to the name of a copy."""


def class_name(text: str) -> str:
    """The name of a class: in Unicode's composed form (NFC), without blanks at the ends."""
    return unicodedata.normalize("NFC", text).strip()


def check_names(place: str, names: Sequence[str]) -> None:
    """Refuses names that occur twice or are empty, and those that no line of a table can hold or
    that a terminal would obey as control sequences.

    Raises:
        DataError: names the classes and the characters.
    """
    if twice := sorted(name for name, n in Counter(names).items() if n > 1):
        raise DataError(f"{place}: class names must differ, these occur twice: {', '.join(twice)}")
    if not all(map(class_name, names)):
        raise DataError(
            f"{place}: the name of a class is empty or holds nothing but blanks: give it a name"
        )
    wrong = {name: [c for c in name if unicodedata.category(c) in _UNPRINTABLE] for name in names}
    bad = [f"{n!r} ({code_points(''.join(found))})" for n, found in wrong.items() if found]
    if bad:
        raise DataError(
            f"{place}: the names of the classes {listed(bad, 6)} hold line breaks or "
            "other control characters, which are not allowed in one: rename the folder, or change "
            "the label"
        )


def code_points(text: str) -> str:
    """The characters of a text that are not ASCII letters or digits, as `U+0065`, and blanks."""
    return " ".join(f"U+{ord(c):04X}" for c in text if not (c.isascii() and c.isalnum())) or "-"


def report_alike(place: str, names: Iterable[str], say: Say) -> None:
    """Reports classes with nearly the same name, which are mostly mistakes."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_key(name), []).append(name)
    for alike in groups.values():
        if len(alike) == 1:
            continue
        if len({name.casefold() for name in alike}) == 1:
            say(f"{place}: the classes {', '.join(alike)} differ in case only")
            continue
        spelt = ", ".join(
            repr(name) if name.isascii() else f"{name!r} ({code_points(name)})" for name in alike
        )
        say(
            f"{place}: the classes {spelt} have nearly the same name: if they are one class, give "
            "them one name"
        )


def check_labels(place: str, counts: Mapping[str, int], say: Say) -> None:
    """Refuses labels in the cells of a table that are unlikely to be meant as class names.

    Those that may be a class or stand for a missing label are named. -1 is one of these where all
    labels are numbers, as in -1, 0 and 1.

    Args:
        counts: images by label, without the empty one.

    Raises:
        DataError: a label stands for a missing value, or joins the names of several classes.
    """
    numbers = all(_NUMBER.fullmatch(name) for name in counts)
    minus_one = [name for name in counts if _MINUS_ONE.fullmatch(name)]
    refused = {name for name in counts if name in MISSING or _STAND_IN.fullmatch(name)}
    refused |= set() if numbers else set(minus_one)
    missing = [f"{name!r} ({n:,})" for name, n in counts.items() if name in refused]
    if missing:
        raise DataError(
            f"{place}: the label {', '.join(missing)} looks like a missing value. For an image "
            "without a label leave the cell empty (in Parquet: null); if it is a class, give it "
            "another name, such as `no object`"
        )
    doubtful = [name for name in counts if name.casefold() in _DOUBTFUL] + minus_one
    if doubtful:
        named = ", ".join(f"{name!r} ({counts[name]:,})" for name in doubtful)
        say(
            f"{place}: the label {named} is read as a class like the others: if it means that an "
            "image has no label, leave the cell empty (in Parquet: null)"
        )
    parts = {name: [part.strip() for part in _SEPARATORS.split(name)] for name in counts}
    known = Counter(part for found in parts.values() for part in set(found))
    several = [
        f"{name!r} ({counts[name]:,})"
        for name, found in parts.items()
        if (
            len(found) > 1
            and (any(part in counts for part in found) or all(known[part] > 1 for part in found))
        )
        or (len(words := name.split()) > 1 and all(word in counts for word in words))
    ]
    if several:
        raise DataError(
            f"{place}: the labels {listed(several, 6)} join the names of several "
            "classes, and an image has one label here. Keep one of them in each row; where the "
            "combination is a class itself, write it without blanks, commas, semicolons and |"
        )


def _key(name: str) -> str:
    """The same for names that differ only in case, blanks, zeros or the mark of a copy."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")  # zero-width characters
    text = re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", _COPY.sub("", text)).strip()
    number = re.fullmatch(r"0*(\d+)(?:\.0*)?", text)
    return number[1] if number else text
