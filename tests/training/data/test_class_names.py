from __future__ import annotations

from pathlib import Path

import pytest

from labelcurve.bundle.errors import DataError
from labelcurve.training.data import class_names, dataset
from tests.training.sets import digit_rows, write_folder, write_parquet


@pytest.mark.parametrize(
    "alike",
    [
        ("cat", "cat (1)"),
        ("cat", "Cat - Copy"),
        ("cat", "Copy of cat"),
        ("01", "1", "1.0"),
        ("golden retriever", "golden_retriever", "Golden-Retriever"),
        ("cat", "cat\u200b"),
        ("new\u00a0york", "new york"),
    ],
)
def test_names_that_nearly_agree_are_named_together(alike: tuple[str, ...]) -> None:
    said: list[str] = []
    class_names.report_alike("pets", ("other", *alike), said.append)
    (line,) = said
    assert "have nearly the same name" in line
    assert all(repr(name) in line for name in alike)
    assert "other" not in line


def test_names_that_differ_in_case_only_are_named_as_such() -> None:
    said: list[str] = []
    class_names.report_alike("pets", ("Cat", "cat", "dog"), said.append)
    assert said == ["pets: the classes Cat, cat differ in case only"]


def test_names_that_differ_are_not_named() -> None:
    said: list[str] = []
    names = ("C", "C++", "C#", "A+", "A-", "1", "10", "cat", "cats", "copy", "(1)")
    class_names.report_alike("pets", names, said.append)
    assert said == []


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ca\nt", r"'ca\nt' (U+000A)"),
        ("\x1b[31mcat", r"'\x1b[31mcat' (U+001B)"),
        ("a\tb", r"'a\tb' (U+0009)"),
        ("a\u2028b", r"'a\u2028b' (U+2028)"),
        ("\ud800", r"'\ud800' (U+D800)"),
    ],
)
def test_a_name_that_would_break_a_table_is_refused(name: str, shown: str) -> None:
    with pytest.raises(DataError) as error:
        class_names.check_names("pets", ("cat", name))
    assert f"pets: the names of the classes {shown}" in str(error.value)
    class_names.check_names("pets", ("chat noir", "\u732b", "e\u0301t\u00e9"))


@pytest.mark.parametrize("name", ["", "  "])
def test_a_name_of_nothing_but_blanks_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="pets: the name of a class is empty or holds nothing but"):
        class_names.check_names("pets", ("cat", name))


@pytest.mark.parametrize(
    "name",
    [
        *("nan", "NaN", "NA", "null", "None", "#N/A"),
        *("unlabelled", "Unlabeled", "not labeled", "no label", "?", "-1", "-1.0"),
    ],
)
def test_a_label_that_stands_for_a_missing_value_is_refused(name: str) -> None:
    with pytest.raises(DataError) as error:
        class_names.check_labels("a.csv", {"cat": 5, name: 3}, print)
    assert f"a.csv: the label '{name}' (3) looks like a missing value" in str(error.value)
    assert "leave the cell empty" in str(error.value)


@pytest.mark.parametrize(
    ("others", "name"),
    [
        *((("cat",), name) for name in ("unknown", "Unknown", "none", "Nan", "N/a", "TBD", "-")),
        (("1",), "-1"),
        (("0", "1"), "-1"),
        (("0.0", "1.0"), "-1.0"),
    ],
)
def test_a_label_that_may_stand_for_a_missing_value_is_a_class_and_named(
    others: tuple[str, ...], name: str
) -> None:
    said: list[str] = []
    class_names.check_labels("a.csv", {**dict.fromkeys(others, 5), name: 3}, said.append)
    assert said == [
        f"a.csv: the label '{name}' (3) is read as a class like the others: if it means that an "
        "image has no label, leave the cell empty (in Parquet: null)"
    ]


@pytest.mark.parametrize(
    ("labels", "joined"),
    [
        (("cat", "dog", "cat|dog"), "'cat|dog' (1)"),
        (("cat", "bird", "cat, dog"), "'cat, dog' (1)"),
        (("scab", "leaf_spot", "scab leaf_spot"), "'scab leaf_spot' (1)"),
        (("a;b", "b;c", "a;c"), "'a;b' (1), 'b;c' (1), 'a;c' (1)"),
    ],
)
def test_labels_that_join_several_classes_are_refused(labels: tuple[str, ...], joined: str) -> None:
    with pytest.raises(DataError) as error:
        class_names.check_labels("a.csv", dict.fromkeys(labels, 1), print)
    assert f"the labels {joined} join the names of several classes" in str(error.value)


@pytest.mark.parametrize(
    "labels",
    [
        ("no object", "cat", "unknown bird", "labelled"),
        ("0", "1", "-2", "11"),
        ("red car", "blue car", "red bus", "blue bus", "car"),
        ("Pepper,_bell___healthy", "Pepper,_bell___Bacterial_spot", "Potato___healthy"),
        ("n01440764;tench", "n01443537;goldfish"),
    ],
)
def test_other_labels_are_allowed(labels: tuple[str, ...]) -> None:
    said: list[str] = []
    class_names.check_labels("a.csv", dict.fromkeys(labels, 1), said.append)
    assert said == []


@pytest.mark.parametrize("where", ["", "train.parquet"])
def test_a_class_name_with_a_line_break_is_refused(tmp_path: Path, where: str) -> None:
    write = write_parquet if where else write_folder
    write(
        tmp_path / "data" / where,
        [(i % 2, data) for i, (_, data) in enumerate(digit_rows(2))],
        ("a\nb", "c"),
    )
    with pytest.raises(DataError, match=r"classes 'a\\nb' \(U\+000A\) hold line breaks"):
        dataset.load(str(tmp_path / "data"), cache=tmp_path / "cache", say=lambda _: None)
