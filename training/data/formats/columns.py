"""Detection of the columns with images, labels and splits in a table or Parquet file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labelcurve.bundle.errors import DataError
from labelcurve.training.data.formats.split_names import of_folder
from labelcurve.training.data.source import shown

NAMES = {
    "path": (
        *("path", "file_name", "filename", "file", "filepath", "file_path", "image_path"),
        *("image", "img"),
    ),
    "label": (
        *("label", "labels", "class", "category", "class_name", "target", "choice", "choices"),
    ),
    "split": ("split", "subset", "set", "partition"),
}
"""Names that a column of a table may have, in lower case."""

MOST_SPLITS = 6
"""Different cells in a column of splits."""

IDS = ("image_id", "image_name", "id")
"""Names of columns that hold the path, perhaps without its ending, where no other column does."""

_LIKE_A_SPLIT = re.compile(
    r"split|phase|^is_?(train|val|valid|test)|(?<![a-z])k?folds?(?![a-z])|"
    r"(?<![a-z])train(ing)?[^a-z]*(or|and|vs)?[^a-z]*(test|val|valid|validation)(?![a-z])"
)


def of_table(
    file: Path,
    names: Sequence[str],
    place: str = "",
    needed: Sequence[str] = ("path", "label"),
    label: str | None = None,
) -> dict[str, str]:
    """The name of the column for each of `path`, `label` and `split` that there is.

    Args:
        place: in the table, for messages.
        needed: which of them must be there.
        label: the column that holds the labels; None finds it by its name.

    Raises:
        DataError: a column is missing, or several can be meant.
    """
    found: dict[str, str] = {}
    for kind, aliases in NAMES.items():
        given = [name for name in names if name.strip().lower() in aliases]
        if kind == "label" and label is not None:
            given = [name for name in names if name.strip() == label]
        if kind == "path" and not given:
            given = [name for name in names if name.strip().lower() in IDS][:1]
        if len(given) > 1:
            flag = (
                "--label-column says which, or keep"
                if kind == "label" and len(set(given)) > 1
                else "Keep"
            )
            raise DataError(
                f"{shown(file)}{place} has {len(given)} columns that can be the {kind}: "
                f"{', '.join(map(repr, given))}. {flag} one of them, or rename the others"
            )
        if given:
            found[kind] = given[0]
    if "split" not in found:
        for name in names:
            if like_a_split(name):
                raise DataError(
                    f"{shown(file)}{place} has a column {name!r} that looks like a split: rename "
                    "it to `split` (with the values train and test), or remove it"
                )
    missing = [
        f"`{label or kind}`" if kind == "label" else f"`{kind}`"
        for kind in needed
        if kind not in found
    ]
    if missing:
        raise DataError(
            f"{shown(file)}{place} has the columns {', '.join(map(repr, names)) or 'none'}: it "
            "needs `path` (relative to the table) and `label` (--label-column names another), and "
            f"may have `split`; {' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} "
            "missing"
        )
    return found


def note(seen: dict[str, set[str]], row: Mapping[str, Any]) -> None:
    """Adds the cells of a row to the different ones of each column, until they are too many."""
    for name, cell in row.items():
        cells = seen.setdefault(name, set())
        if len(cells) <= MOST_SPLITS and isinstance(cell, str):
            cells.add(cell.strip())


def like_a_split(name: str) -> bool:
    """Returns whether a column's name says that it marks test rows: `fold`, `is_valid`, `train`.

    Such a column is not read, but must not be silently ignored either.
    """
    found = of_folder(name)
    return bool(_LIKE_A_SPLIT.search(name.strip().lower()) or (found and not found[1]))


def several_splits(cells: Iterable[str]) -> bool:
    """Returns whether cells name several splits; others may be empty or name something else."""
    return len({split[0] for cell in cells if (split := of_folder(cell))}) > 1


def check_others(file: Path, seen: Mapping[str, set[str]], label: str | None) -> None:
    """Refuses a table whose column of splits has another name, as `Usage` in FER2013.

    Args:
        seen: the different cells of each column, as `note` collects them.
        label: the column that holds the labels, if an option says so.

    Raises:
        DataError: names the column.
    """
    if any(name.strip().lower() in NAMES["split"] for name in seen):
        return
    for name, cells in seen.items():
        if name == label or name.strip().lower() in (*NAMES["path"], *NAMES["label"]):
            continue
        if len(cells) <= MOST_SPLITS and several_splits(cells):
            raise DataError(
                f"{shown(file)} has a column {name!r} that looks like a split "
                f"({', '.join(sorted(cells - {''}))}): rename it to `split`, with the values "
                "train, validation and test, or remove it"
            )


def of_parquet(file: Path, schema: Any, label: str | None) -> tuple[str, str]:
    """The columns of images and labels of a Parquet file: by name, else by what `datasets` says.

    Args:
        schema: of pyarrow.
        label: the column that holds the labels; None finds it.

    Raises:
        DataError: a column is missing, or several can be meant.
    """
    kinds = {name: str(feature.get("_type")) for name, feature in features(schema).items()}
    images = [name for name in schema.names if name in ("img", "image")]
    images = images or [name for name in schema.names if kinds.get(name) == "Image"]
    labels = [
        name
        for name in schema.names
        if (name == label if label else kinds.get(name) == "ClassLabel" or _means_label(name))
    ]
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    if len(labels) > 1:
        raise DataError(
            f"{shown(file)} has {len(labels)} columns that can be the label: {', '.join(labels)}. "
            "--label-column NAME says which"
        )
    if len(images) > 1:
        raise DataError(
            f"{shown(file)} has {len(images)} columns of images: {', '.join(images)}. Keep one"
        )
    raise DataError(
        f"{shown(file)} has the columns {', '.join(schema.names)}: it needs `img` or `image` (a "
        f"struct with `bytes`) and `{label or 'label'}`; --label-column names another for labels"
    )


def _means_label(name: str) -> bool:
    return name.strip().lower() in NAMES["label"]


def features(schema: Any) -> Mapping[str, Mapping[str, Any]]:
    """The features by column, as `datasets` writes them; empty where there are none."""
    try:
        found = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: feature for name, feature in found.items() if isinstance(feature, dict)}


def like_splits(metadata: Any, used: Iterable[str]) -> list[str]:
    """The columns of a Parquet file that look like splits, by their names or cells.

    Args:
        metadata: of pyarrow; the least and the greatest cell of each row group are in it.
        used: columns that hold something else.
    """
    cells: dict[str, set[str]] = {}
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for place in range(group.num_columns):
            column = group.column(place)
            known = cells.setdefault(column.path_in_schema, set())
            if (found := column.statistics) is not None and found.has_min_max:
                known |= {cell for cell in (found.min, found.max) if isinstance(cell, str)}
    names = metadata.schema.to_arrow_schema().names
    return [
        name
        for name in names
        if name not in used
        and (
            name.lower() in NAMES["split"]
            or like_a_split(name)
            or several_splits(cells.get(name, ()))
        )
    ]


def one_hot(names: Sequence[str], rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The columns that hold nothing but 0 and 1, if there are several: one for each class."""
    numbers = {"0", "1", "0.0", "1.0"}
    found = [
        name
        for name in names
        if rows and all((row.get(name) or "").strip() in numbers for row in rows)
    ]
    return found if len(found) > 1 else []
