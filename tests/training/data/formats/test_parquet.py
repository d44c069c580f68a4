from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelcurve.bundle.errors import DataError, UnreadableImage
from labelcurve.training.data.formats.parquet import parquet
from tests.training.sets import NAMES, digit_rows, write_parquet

ROWS = digit_rows()[:40]
LABELS = [label for label, _ in ROWS]


def silent(_: str) -> None:
    return


def write_table(file: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), file)


@pytest.mark.parametrize("image", ["img", "image"])
@pytest.mark.parametrize("folder", ["", "data"])
def test_the_layout_of_the_hub_is_read(tmp_path: Path, image: str, folder: str) -> None:
    write_parquet(tmp_path / folder / "train-00000-of-00001.parquet", ROWS, image=image)
    write_parquet(tmp_path / folder / "test-00000-of-00001.parquet", ROWS[:15], image=image)
    source = parquet(tmp_path, silent)
    assert source.class_names == NAMES
    assert source.splits["train"].labels.tolist() == LABELS
    assert source.splits["test"].labels.tolist() == LABELS[:15]
    assert [source.splits["train"].read(i) for i in range(40)] == [data for _, data in ROWS]
    file = tmp_path / folder / "test-00000-of-00001.parquet"
    assert source.splits["test"].where(3) == f"{file} row 3"


def test_several_files_are_one_split_even_where_their_image_columns_differ(
    tmp_path: Path,
) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", ROWS[:25], image="img")
    write_parquet(tmp_path / "train-00001-of-00002.parquet", ROWS[25:], image="image")
    source = parquet(tmp_path, silent)
    assert source.splits["train"].labels.tolist() == LABELS
    assert [source.splits["train"].read(i) for i in range(40)] == [data for _, data in ROWS]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_file_bytes_may_stand_without_a_struct(tmp_path: Path, kind: pa.DataType) -> None:
    images = pa.array([data for _, data in ROWS], kind)
    write_table(tmp_path / "a.parquet", {"image": images, "label": LABELS})
    assert parquet(tmp_path, silent).splits["train"].read(39) == ROWS[39][1]


@pytest.mark.parametrize("file", ["train.parquet", "all.parquet", "latest-results.parquet"])
def test_files_without_a_split_in_their_name_are_train(tmp_path: Path, file: str) -> None:
    write_parquet(tmp_path / file, ROWS)
    assert list(parquet(tmp_path, silent).splits) == ["train"]


def test_without_names_the_labels_are_the_names_in_their_own_order(tmp_path: Path) -> None:
    rows = [(label * 5, data) for label, data in reversed(ROWS)]
    write_parquet(tmp_path / "train.parquet", rows, names=None)
    source = parquet(tmp_path, silent)
    assert source.class_names == ("0", "5", "10", "15")
    assert source.splits["train"].labels.tolist() == LABELS[::-1]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_labels_may_be_strings(tmp_path: Path, kind: pa.DataType) -> None:
    names = pa.array([("zebra", "ant")[label % 2] for label in LABELS], kind)
    write_table(tmp_path / "a.parquet", {"image": [data for _, data in ROWS], "label": names})
    source = parquet(tmp_path, silent)
    assert source.class_names == ("ant", "zebra")
    assert source.splits["train"].labels.tolist() == [1 - label % 2 for label in LABELS]


def test_a_label_of_nothing_but_blanks_is_none(tmp_path: Path) -> None:
    names = ["ant", " ", "bee", "", None, " bee", "ant"]
    write_table(
        tmp_path / "a.parquet", {"image": [data for _, data in ROWS[:7]], "label": pa.array(names)}
    )
    source = parquet(tmp_path, silent)
    assert source.class_names == ("bee", "ant")
    assert source.splits["train"].labels.tolist() == [1, -1, 0, -1, -1, 0, 1]


@pytest.mark.parametrize(("label", "split"), [(10, "train"), (-2, "test")])
def test_a_label_outside_the_names_is_named_with_its_row(
    tmp_path: Path, label: int, split: str
) -> None:
    write_parquet(tmp_path / "train.parquet", ROWS)
    write_parquet(tmp_path / "test.parquet", ROWS)
    bad: list[Any] = [*ROWS[:7], (label, ROWS[0][1])]
    write_parquet(tmp_path / f"{split}.parquet", bad)
    has = rf"label {label}; the class names allow 0 to 9 \(0, 1, 2, 3, 4"
    message = rf"{split}\.parquet row 7 has {has}"
    with pytest.raises(DataError, match=message):
        parquet(tmp_path, silent)


def test_a_row_is_named_by_its_own_file_whatever_its_row_groups(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-a.parquet", ROWS[:15])
    second = tmp_path / "train-b.parquet"
    write_parquet(second, ROWS[15:], rows_per_group=10)
    where = parquet(tmp_path, silent).splits["train"].where
    assert [where(row) for row in (0, 14, 15, 39)] == [
        f"{tmp_path}/train-a.parquet row 0",
        f"{tmp_path}/train-a.parquet row 14",
        f"{second} row 0",
        f"{second} row 24",
    ]
    write_parquet(second, [*ROWS[:3], (10, ROWS[0][1])])
    with pytest.raises(DataError, match=r"train-b\.parquet row 3 has label 10;"):
        parquet(tmp_path, silent)


def test_a_row_without_a_label_is_unlabelled_in_train_and_left_out_of_test(tmp_path: Path) -> None:
    some: list[Any] = [*ROWS[:3], (None, ROWS[3][1]), ROWS[20]]
    write_parquet(tmp_path / "train.parquet", some)
    write_parquet(tmp_path / "test.parquet", some)
    source = parquet(tmp_path, silent)
    assert source.splits["train"].labels.tolist() == [0, 0, 0, -1, 2]
    assert source.splits["test"].labels.tolist() == [0, 0, 0, 2]
    assert source.splits["test"].read(3) == ROWS[20][1]
    assert source.splits["test"].where(3) == f"{tmp_path}/test.parquet row 4"
    assert [(item.path, item.reason) for item in source.left_out] == [
        (f"{tmp_path}/test.parquet row 3", "images of test without a label")
    ]


def test_the_label_that_datasets_writes_for_a_hidden_one_means_none(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [*ROWS[:3], (-1, ROWS[3][1])])
    write_parquet(tmp_path / "test.parquet", [(-1, data) for _, data in ROWS[:2]])
    said: list[str] = []
    source = parquet(tmp_path, said.append)
    assert list(source.splits) == ["train"]
    assert source.splits["train"].labels.tolist() == [0, 0, 0, -1]
    assert [item.reason for item in source.left_out] == ["images of test without a label"] * 2
    assert said == [
        f"{tmp_path}: 3 images with the label -1: unlabelled",
        f"{tmp_path}: no image of the test split has a label: it is not used",
    ]


def test_without_names_minus_one_is_a_class_and_that_is_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [(-1, ROWS[0][1]), (1, ROWS[1][1])], names=None)
    said: list[str] = []
    assert parquet(tmp_path, said.append).class_names == ("-1", "1")
    assert said == [
        f"{tmp_path}: the label '-1' (1) is read as a class like the others: if it means that an "
        "image has no label, leave the cell empty (in Parquet: null)"
    ]


def test_rows_of_unlabelled_files_have_no_label_and_what_the_column_says_is_named(
    tmp_path: Path,
) -> None:
    write_parquet(tmp_path / "train.parquet", ROWS[:12])
    write_parquet(tmp_path / "unsupervised.parquet", ROWS[12:14])
    said: list[str] = []
    source = parquet(tmp_path, said.append)
    assert list(source.splits) == ["train"]
    assert source.splits["train"].labels.tolist() == [*LABELS[:12], -1, -1]
    assert source.splits["train"].read(13) == ROWS[13][1]
    assert said == [
        f"{tmp_path}: 2 labels in unsupervised.parquet not used, since that is the name of "
        "unlabelled images: rename the file to train-....parquet to use them"
    ]


def write_features(file: Path, features: dict[str, Any]) -> None:
    """Two images with a column for each feature but the first, which is the image's."""
    image, *others = features
    columns: dict[str, Any] = {image: [{"bytes": data, "path": None} for _, data in ROWS[:2]]}
    table = pa.table(columns | {name: [1, 0] for name in others})
    metadata = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), file)


NAMED = {"_type": "ClassLabel", "names": ["ant", "bee"]}


def test_columns_of_other_names_are_found_by_the_features_of_datasets(tmp_path: Path) -> None:
    features = {"photo": {"_type": "Image"}, "insect": NAMED, "age": {"_type": "Value"}}
    write_features(tmp_path / "train.parquet", features)
    said: list[str] = []
    source = parquet(tmp_path, said.append)
    assert source.class_names == ("ant", "bee")
    assert source.splits["train"].labels.tolist() == [1, 0]
    assert source.splits["train"].read(0) == ROWS[0][1]
    assert said == [f"{tmp_path}: the column insect holds the labels"]


def test_declared_names_have_the_spelling_of_all_names_of_classes(tmp_path: Path) -> None:
    # As a table of corrections has them.
    write_parquet(tmp_path / "train.parquet", ROWS, (" ant", "cafe\u0301 ", "bee", "cow"))
    assert parquet(tmp_path, silent).class_names == ("ant", "caf\u00e9", "bee", "cow")


def test_of_several_columns_of_labels_one_must_be_named(tmp_path: Path) -> None:
    features = {"img": {"_type": "Image"}, "fine": NAMED, "coarse": NAMED}
    write_features(tmp_path / "train.parquet", features)
    message = "has 2 columns that can be the label: fine, coarse. --label-column NAME says which"
    with pytest.raises(DataError, match=message):
        parquet(tmp_path, silent)
    assert parquet(tmp_path, silent, "coarse").splits["train"].labels.tolist() == [1, 0]


@pytest.mark.parametrize("other", ["labels", "Class", "target"])
def test_a_second_column_that_can_be_the_label_is_not_passed_over(
    tmp_path: Path, other: str
) -> None:
    pixels = [data for _, data in ROWS]
    write_table(tmp_path / "a.parquet", {"image": pixels, "label": LABELS, other: LABELS[::-1]})
    with pytest.raises(DataError, match=f"2 columns that can be the label: label, {other}"):
        parquet(tmp_path, silent)
    chosen = parquet(tmp_path, silent, other)
    assert [chosen.class_names[n] for n in chosen.splits["train"].labels] == [
        str(label) for label in LABELS[::-1]
    ]


def test_a_column_of_splits_is_not_passed_over_where_no_file_is_test(tmp_path: Path) -> None:
    columns = {"image": [data for _, data in ROWS], "label": LABELS, "split": ["test"] * len(ROWS)}
    write_table(tmp_path / "train.parquet", columns)
    with pytest.raises(DataError, match="a column 'split' that looks like a split, and no file is"):
        parquet(tmp_path, silent)
    write_table(tmp_path / "test.parquet", columns)
    assert set(parquet(tmp_path, silent).splits) == {"train", "test"}


def test_a_column_of_splits_is_recognised_by_its_cells(tmp_path: Path) -> None:
    n = len(ROWS)
    columns = {"image": [data for _, data in ROWS], "label": LABELS, "by": ["Ann"] * n}
    write_table(tmp_path / "a.parquet", columns)
    assert set(parquet(tmp_path, silent).splits) == {"train"}
    write_table(
        tmp_path / "b.parquet", columns | {"Usage": ["Training"] + ["PublicTest"] * (n - 1)}
    )
    with pytest.raises(DataError, match=r"b\.parquet has a column 'Usage' that looks like a split"):
        parquet(tmp_path, silent)


def test_labels_that_stand_for_a_missing_value_are_refused(tmp_path: Path) -> None:
    names = ["cat", "dog", "nan"]
    write_table(tmp_path / "a.parquet", {"image": [data for _, data in ROWS[:3]], "label": names})
    with pytest.raises(DataError, match=r"the label 'nan' \(1\) looks like a missing value"):
        parquet(tmp_path, silent)


@pytest.mark.parametrize("split", ["train", "test"])
def test_files_that_the_names_of_the_others_count_must_be_there(tmp_path: Path, split: str) -> None:
    write_parquet(tmp_path / "train.parquet", ROWS)
    write_parquet(tmp_path / f"{split}-00001-of-00004.parquet", ROWS)
    missing = ", ".join(f"{split}-0000{number}-of-00004.parquet" for number in (0, 2, 3))
    with pytest.raises(DataError, match=f"that the names of the others count: {missing}"):
        parquet(tmp_path, silent)
    for number in (0, 2, 3):
        write_parquet(tmp_path / f"{split}-0000{number}-of-00004.parquet", ROWS)
    assert len(parquet(tmp_path, silent).splits[split].labels) == 4 * 40 + 40 * (split == "train")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": [b""], "label": [0]}, "has the columns picture, label: it needs `img` or"),
        ({"image": [b""], "fine": [0]}, "has the columns image, fine: it needs `img` or `image`"),
        (
            {"img": [b""], "image": [b""], "label": [0]},
            "has 2 columns of images: img, image. Keep one",
        ),
        ({"image": [{"name": "a.png"}], "label": [0]}, "column `image` is of type struct<name"),
        ({"image": [[1, 2]], "label": [0]}, "column `image` is of type list"),
        ({"image": [b""], "label": [[0]]}, "column `label` is of type list"),
        ({"image": [b""], "label": [0.5]}, "column `label` is of type double"),
    ],
)
def test_a_column_that_does_not_fit_is_named(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    write_table(tmp_path / "train.parquet", columns)
    with pytest.raises(DataError, match=rf"train\.parquet.*{re.escape(message)}"):
        parquet(tmp_path, silent)


@pytest.mark.parametrize("other", ["test.parquet", "train-2.parquet"])
@pytest.mark.parametrize("names", [tuple("9876543210"), NAMES[:5], None])
def test_files_of_different_classes_are_named(
    tmp_path: Path, other: str, names: tuple[str, ...] | None
) -> None:
    write_parquet(tmp_path / "train-1.parquet", ROWS)
    write_parquet(tmp_path / other, ROWS[:20], names=names)
    with pytest.raises(DataError, match=r"(?s)parquet and .*parquet have different class names"):
        parquet(tmp_path, silent)


def test_files_of_different_types_of_label_are_named(tmp_path: Path) -> None:
    write_table(tmp_path / "train-1.parquet", {"image": [b"1", b"2"], "label": [0, 1]})
    write_table(tmp_path / "train-2.parquet", {"image": [b"1", b"2"], "label": ["0", "1"]})
    with pytest.raises(DataError, match="different types of label: string and int64"):
        parquet(tmp_path, silent)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", ROWS[:5], names=None)
    message = "at least two classes are needed in the column of labels, found: "
    with pytest.raises(DataError, match=message):
        parquet(tmp_path, silent)


def test_no_train_split_is_an_error_that_lists_the_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", ROWS)
    write_parquet(tmp_path / "valid.parquet", ROWS)
    with pytest.raises(DataError, match=r"no Parquet file of a train split among test\.parquet, v"):
        parquet(tmp_path, silent)


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut"])
def test_a_file_that_is_no_parquet_is_named(tmp_path: Path, damage: str) -> None:
    file = write_parquet(tmp_path / "train.parquet", ROWS)
    whole = file.read_bytes()
    file.write_bytes({"empty": b"", "garbage": b"x" * 500, "cut": whole[:-100]}[damage])
    with pytest.raises(DataError, match=r"cannot read .*train\.parquet as Parquet"):
        parquet(tmp_path, silent)


def test_damaged_pages_behind_a_good_footer_are_named(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "train.parquet", ROWS)
    data = bytearray(file.read_bytes())
    data[4:600] = b"\xff" * 596
    file.write_bytes(data)
    source = parquet(tmp_path, silent)
    with pytest.raises(DataError, match=r"cannot read .*train\.parquet as Parquet"):
        source.splits["train"].read(0)


def test_a_path_without_bytes_is_read_beside_the_file(tmp_path: Path) -> None:
    # As `datasets` writes without embedding the images.
    images = [{"bytes": None, "path": "inner/a.png"}, {"bytes": ROWS[0][1], "path": "b.png"}]
    images += [{"bytes": None, "path": "c.png"}, {"bytes": None, "path": None}]
    write_table(tmp_path / "a.parquet", {"image": images, "label": [0, 1, 0, 1]})
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.png").write_bytes(ROWS[5][1])
    source = parquet(tmp_path, silent)
    read = source.splits["train"].read
    assert read(0) == ROWS[5][1]
    assert read(1) == ROWS[0][1]
    with pytest.raises(UnreadableImage, match="it is null: it has neither bytes nor a path"):
        read(3)
    with pytest.raises(
        UnreadableImage, match=r"names the file c\.png, which cannot be read next to"
    ):
        read(2)
    before = source.fingerprint
    (tmp_path / "inner" / "a.png").write_bytes(ROWS[6][1])
    assert source.changed() == [tmp_path / "inner" / "a.png"]
    assert parquet(tmp_path, silent).fingerprint != before


def test_a_pipe_is_an_unreadable_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    images = [{"bytes": ROWS[0][1], "path": None}, {"bytes": None, "path": "pipe"}]
    write_table(tmp_path / "a.parquet", {"image": images, "label": [0, 1]})
    with pytest.raises(UnreadableImage, match=r"names the file pipe, .*: it is a pipe, a socket"):
        parquet(tmp_path, silent).splits["train"].read(1)


def test_a_path_that_no_file_can_have_is_an_unreadable_image(tmp_path: Path) -> None:
    images = [{"bytes": None, "path": "a\0.png"}, {"bytes": ROWS[0][1], "path": "b.png"}]
    write_table(tmp_path / "a.parquet", {"image": images, "label": [0, 1]})
    source = parquet(tmp_path, silent)
    with pytest.raises(UnreadableImage, match="no file name has a NUL"):
        source.splits["train"].read(0)
    assert source.splits["train"].read(1) == ROWS[0][1]


@pytest.mark.parametrize("kind", ["struct", "text"])
def test_paths_alone_are_enough(tmp_path: Path, kind: str) -> None:
    images: list[Any] = [{"path": "0.png"}, {"path": "1.png"}]
    if kind == "text":
        images = ["0.png", "1.png"]
    write_table(tmp_path / "train.parquet", {"image": images, "label": [0, 1]})
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(ROWS[number][1])
    source = parquet(tmp_path, silent)
    assert [source.splits["train"].read(row) for row in range(2)] == [ROWS[0][1], ROWS[1][1]]
