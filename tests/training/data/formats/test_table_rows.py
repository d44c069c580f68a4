"""Rows of JSON tables that lack what they should have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from labelcurve.bundle.errors import DataError
from labelcurve.training.data.formats.table_rows import Row, read

CHOSEN = {"type": "choices", "value": {"choices": ["[cat]"]}}


def written(folder: Path, entries: Any) -> Path:
    file = folder / "a.json"
    file.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return file


def task(annotations: Any, **data: Any) -> dict[str, Any]:
    return {"annotations": annotations, "data": {"image": "1.png", **data}}


def test_a_split_that_is_null_is_none(tmp_path: Path) -> None:
    file = written(tmp_path, [task([{"result": [CHOSEN]}], split=None)])
    assert read(file) == [Row(1, "1.png", "[cat]", "")]


@pytest.mark.parametrize(
    ("annotations", "why"),
    [
        (None, "TypeError"),
        ([1], "AttributeError"),
        ([{"result": None}], "TypeError"),
        ([{"result": [{"type": "choices"}]}], "KeyError: 'value'"),
    ],
)
def test_a_task_that_is_not_as_label_studio_exports_it_is_named(
    tmp_path: Path, annotations: Any, why: str
) -> None:
    file = written(tmp_path, [task([{"result": [CHOSEN]}]), task(annotations)])
    message = f"a.json entry 2 is not as Label Studio exports one ({why}"
    with pytest.raises(DataError, match=re.escape(message)):
        read(file)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "no entry has a label; the columns are 'path', 'text': --label-column names that"),
        ("Text", "no entry has a label in 'Text'; the columns are 'path', 'text'"),
    ],
)
def test_where_no_entry_has_a_label_the_columns_are_named(
    tmp_path: Path, label: str | None, message: str
) -> None:
    file = written(tmp_path, [{"path": "1.png", "text": "cat"}])
    with pytest.raises(DataError, match=message):
        read(file, label)
    assert read(file, "text") == [Row(1, "1.png", "cat")]


def test_annotations_have_no_column_that_could_be_named(tmp_path: Path) -> None:
    file = written(tmp_path, [task([{"result": [CHOSEN]}])])
    with pytest.raises(DataError, match=r"--label-column breed: the labels of .* are the choices"):
        read(file, "breed")


def test_json_that_is_nested_too_deep_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.json is not JSON: maximum recursion depth"):
        read(written(tmp_path, "[" * 100_000))
