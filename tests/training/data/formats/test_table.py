from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from labelcurve.bundle.errors import DataError, UnreadableImage
from labelcurve.training.data.formats.table import table
from labelcurve.training.data.source import Source
from tests.training.sets import digit_rows


def images(root: Path, n: int, folder: str = "photos") -> Path:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(n):
        (root / folder / f"{number}.png").write_bytes(digit_rows()[number][1])
    return root


def opened(file: Path, text: str | bytes) -> tuple[Source, list[str]]:
    said: list[str] = []
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return table(file, said.append), said


def rows(source: Source, split: str = "train") -> dict[str, str | None]:
    """The file of each row with its label."""
    found = source.splits[split]
    names = dict(enumerate(source.class_names))
    return {Path(found.where(i)).name: names.get(int(n)) for i, n in enumerate(found.labels)}


def test_a_row_is_an_image_with_its_label_and_split(tmp_path: Path) -> None:
    images(tmp_path / "pets", 7)
    text = (
        "path,label,split\nphotos/1.png,dog,train\nphotos/0.png,cat,train\nphotos/2.png,cat,\n"
        "photos/3.png,dog,Test\nphotos/4.png,,\nphotos/5.png,,test\nphotos/6.png,cat,unlabelled\n"
    )
    source, said = opened(tmp_path / "pets" / "labels.csv", text)
    assert (source.name, source.class_names) == ("pets", ("cat", "dog"))
    assert rows(source) == {"0.png": "cat", "2.png": "cat", "1.png": "dog"} | dict.fromkeys(
        ("4.png", "6.png")
    )
    assert rows(source, "test") == {"3.png": "dog"}
    assert source.splits["train"].read(2) == digit_rows()[1][1]
    assert [(Path(i.path).name, i.reason) for i in source.left_out] == [
        ("5.png", "images of test without a label")
    ]
    assert said == [
        f"{tmp_path}/pets/labels.csv: 2 images without a label, in row 6, 7",
        f"{tmp_path}/pets/labels.csv: 1 label not used: the split is unlabelled there",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", b"\xef\xbb\xbfFile_Name;Class\r\nphotos\\0.png;cat\r\nphotos/1.png; dog \r\n"),
        ("a.tsv", b"image\tcategory\nphotos/0.png\tcat\nphotos/1.png\tdog\n"),
        ("a.csv", b"id,path,label\n7,photos/0.png,cat\n8,photos/1.png,dog\n"),
        ("a.csv", b'path, label\r"photos/0.png", "cat"\r"photos/1.png", "dog"\r'),
        ("a.csv", b'path,label,note\nphotos/0.png,cat,"a\nb, c"\nphotos/1.png,dog,\n'),
        ("a.csv", b"path|label|origin\nphotos/0.png|cat|a\nphotos/1.png|dog|test\n"),
        ("a.csv", b"image_id,label\nphotos/0,cat\nphotos/1,dog\n"),
        ("photos.csv", b"filename,label\n0.png,cat\n1.png,dog\n"),
        (
            "a.jsonl",
            b'{"path": "photos/0.png", "label": "cat"}\n\n{"path": "photos/1.png", "label": "dog"}',
        ),
        (
            "a.NDJSON",
            b'{"path": "photos/0.png", "label": "cat"}\n{"path": "photos/1.png", "label": "dog"}\n',
        ),
        (
            "a.json",
            b'[{"path": "photos/0.png", "label": "cat"}, {"path": "photos/1.png", "label": "dog"}]',
        ),
    ],
)
def test_the_usual_forms_of_a_table_are_read_alike(tmp_path: Path, name: str, text: bytes) -> None:
    source, _ = opened(images(tmp_path, 2) / name, text)
    assert rows(source) == {"0.png": "cat", "1.png": "dog"}
    assert source.name == Path(name).stem


def label_studio(kind: str) -> Any:
    def task(number: int, *choices: str, cancelled: bool = False) -> dict[str, Any]:
        results = [{"type": "choices", "value": {"choices": [choice]}} for choice in choices]
        return {
            "id": number,
            "annotations": [{"result": results, "was_cancelled": cancelled}],
            "data": {"image": f"/data/upload/3/0a1b2c3d-{number}.png"},
        }

    if kind == "JSON":
        return [task(0, "cat"), task(1, "dog"), task(2), task(3, "dog", cancelled=True)]
    local = "/data/local-files/?d=photos/{}.png"
    return [
        {"image": local.format(0), "id": 1, "choice": "cat", "annotator": 1},
        {"image": local.format(1), "id": 2, "choice": {"choices": ["dog"]}},
        {"image": local.format(2), "id": 3},
        {"image": local.format(3), "id": 4, "choice": None},
    ]


@pytest.mark.parametrize("kind", ["JSON", "JSON-MIN"])
def test_an_export_of_label_studio_is_read(tmp_path: Path, kind: str) -> None:
    images(tmp_path, 4, "images")
    text = json.dumps(label_studio(kind))
    source, _ = opened(images(tmp_path, 4) / "project.json", text)
    assert rows(source) == {"0.png": "cat", "1.png": "dog", "2.png": None, "3.png": None}
    folder = "images" if kind == "JSON" else "photos"
    assert source.splits["train"].where(0) == str(tmp_path / folder / "0.png")


def test_a_csv_export_of_label_studio_is_read(tmp_path: Path) -> None:
    text = (
        "annotation_id,annotator,choice,created_at,id,image\n"
        "1,1,cat,2024,1,/data/upload/1/0a1b2c3d-0.png\n2,1,dog,2024,2,/data/upload/1/1.png\n"
    )
    source, _ = opened(images(tmp_path, 2, ".") / "project.csv", text)
    assert rows(source) == {"0.png": "cat", "1.png": "dog"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "has the columns none: it needs `path` (relative to the table) and `label`"),
        ("a.csv", "path,label\n", "a.csv holds no row"),
        ("a.csv", "id,breed\n1,cat\n", "has the columns 'id', 'breed': it needs `path`"),
        ("a.csv", "path,cat\nphotos/0.png,1\n", "and may have `split`; `label` is missing"),
        ("a.csv", "photos/0.png,cat\nphotos/1.png,dog\n", "`path` and `label` are missing"),
        (
            "_classes.csv",
            "filename, cat, dog\nphotos/0.png, 1, 0\nphotos/1.png, 0.0, 1.0\n",
            "_classes.csv has a column of 0 and 1 for each class (cat, dog): write the name of the",
        ),
        ("a.csv", "path,label\nphotos,cat\nphotos/1.png,dog\n", "photos is a folder, no image"),
        (
            "a.csv",
            "path,label\nC:\\x\\0.PNG,cat\nC:\\x\\1.PNG,dog\n",
            "2 images of these names (in any case) in ",
        ),
        (
            "a.csv",
            "path,label\nphotos/0.png,cat\nphotos/1.png,dog\nphotos/2.png,nan\n",
            "the label 'nan' (1) looks like a missing value",
        ),
        (
            "a.csv",
            'path,label\nphotos/0.png,cat\nphotos/1.png,dog\nphotos/2.png,"cat,dog"\n',
            "the labels 'cat,dog' (1) join the names of several classes",
        ),
        ("a.csv", "path,label\nphotos/0.png\n", "line 2 has more or fewer cells than the header"),
        ("a.csv", "path,label\n,cat\n", "row 2 has no path"),
        (
            "a.csv",
            "path,label\na/0.png,cat\nb.png,dog\n",
            "none of its images is there, as row 2: a/0.png (",
        ),
        (
            "a.csv",
            "path,label\nhttps://x.test/a.png,cat\n",
            "is not a local file: download the images",
        ),
        ("a.csv", "path,label\nphotos/0.png,cat\nphotos/1.png,cat\n", "at least two classes"),
        (
            "a.csv",
            b"path,label\nphotos/0.png,caf\xe9\n",
            "is not UTF-8 (byte 27): save it as UTF-8",
        ),
        (
            "a.csv",
            "path,label,split\nphotos/0.png,cat,holdout\n",
            "row 2: 'holdout' is not a split: allowed are train, validation, test and unlabelled",
        ),
        (
            "a.csv",
            "path,label,split\nphotos/0.png,a,train\nphotos/1.png,b,train\nphotos/2.png,c,test\n",
            "only rows of test have c: train needs each class",
        ),
        ("a.csv", "path,label\nphotos/0.png,cat\nphotos/\0.png,dog\n", "row 3: 'photos/\\x00.png'"),
        (
            "a.json",
            '[{"path": "photos/0.png", "label": "c\\ud800t"}]',
            "row 1: 'c\\ud800t' has a character that no file name and no class name may have",
        ),
        ("a.json", '[{"path": "photos/0.png", "label": "c\\udc80t"}]', "row 1: 'c\\udc80t' has a"),
        (
            "a.jsonl",
            '{"image": {"path": "photos/0.png"}, "label": "cat"}',
            "row 1: {'path': 'photos/0.png'} is not a path: a string is expected",
        ),
        ("a.jsonl", '{"path": "photos/0.png", "label": "cat"}\n{', "line 2 is not JSON"),
        ("a.json", '{"path": "photos/0.png"}', "holds no list"),
        ("a.json", '["photos/0.png"]', "entry 1 is not an object with `path` and `label`"),
        ("a.json", '[{"path": "photos/0.png", "label": ["a", "b"]}]', "row 1 has 2 labels (a, b)"),
        ("a.json", '[{"path": "photos/0.png", "label": 0.5}]', "row 1: 0.5 is not a label"),
        (
            "a.json",
            '[{"path": "photos/0.png", "label": {"name": "cat"}}]',
            "row 1: {'name': 'cat'} is not a label",
        ),
        (
            "a.csv",
            'path,label\nphotos/0.png,"cat\nphotos/1.png,dog\n',
            "unexpected end of data: is",
        ),
        (
            "a.csv",
            'path,label\nphotos/0.png,"cat\nphotos/1.png,do""g"\nphotos/2.png,dog\n',
            "line 3: a cell holds a line break: is a quotation mark before it not closed?",
        ),
        (
            "a.csv",
            "path,label,Usage\nphotos/0.png,cat,Training\nphotos/1.png,dog,PublicTest\n",
            "a column 'Usage' that looks like a split (PublicTest, Training): rename it to `split`",
        ),
        (
            "a.jsonl",
            '{"path": "photos/0.png", "label": "cat", "use": "train"}\n'
            '{"path": "photos/1.png", "label": "dog", "use": "val"}',
            "a column 'use' that looks like a split (train, val)",
        ),
        (
            "a.csv",
            "path,label,of\nphotos/0.png,cat,train\nphotos/1.png,dog,test\nphotos/2.png,dog,\n",
            "a column 'of' that looks like a split (test, train): rename it to `split`",
        ),
        (
            "a.csv",
            "path,label,of\nphotos/0.png,cat,train\nphotos/1.png,dog,test\nphotos/2.png,dog,extra",
            "a column 'of' that looks like a split (extra, test, train): rename it to `split`",
        ),
        (
            "a.jsonl",
            '{"path": "photos/0.png", "label": "cat", "test": false}\n'
            '{"path": "photos/1.png", "label": "dog", "test": true}',
            "a column 'test' that looks like a split",
        ),
    ],
)
def test_what_cannot_be_meant_is_named(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        opened(images(tmp_path, 3) / name, text)


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ("path,class,category", "2 columns that can be the label: 'class', 'category'"),
        ("path,image,label", "2 columns that can be the path: 'path', 'image'"),
        ("path,label,split,subset", "2 columns that can be the split: 'split', 'subset'"),
        ("path,label,Split Name", "a column 'Split Name' that looks like a split"),
        ("path,label,is_valid", "a column 'is_valid' that looks like a split"),
        ("path,label,train", "a column 'train' that looks like a split"),
        ("path,label,train_or_test", "a column 'train_or_test' that looks like a split"),
        ("path,label,fold", "a column 'fold' that looks like a split"),
    ],
)
def test_columns_that_can_be_read_in_two_ways_are_refused(
    tmp_path: Path, header: str, error: str
) -> None:
    images(tmp_path, 2)
    row = ",".join(["photos/0.png", "cat", "train", "test"][: header.count(",") + 1])
    with pytest.raises(DataError, match=re.escape(error)):
        opened(tmp_path / "labels.csv", f"{header}\n{row}\n")


def test_labels_that_are_called_like_splits_are_no_split(tmp_path: Path) -> None:
    text = "path,label\nphotos/0.png,train\nphotos/1.png,test tube\nphotos/2.png,bus\n"
    source, _ = opened(images(tmp_path, 3) / "labels.csv", text)
    assert rows(source) == {"0.png": "train", "1.png": "test tube", "2.png": "bus"}


def test_names_of_columns_that_only_begin_alike_are_no_split(tmp_path: Path) -> None:
    text = "path,label,folder,strain_value,train_interval\n" + "".join(
        f"photos/{i}.png,{label},a,1,2\n" for i, label in enumerate(("cat", "dog"))
    )
    assert rows(opened(images(tmp_path, 2) / "a.csv", text)[0]) == {"0.png": "cat", "1.png": "dog"}


def test_commas_in_the_names_of_columns_between_tabs_separate_nothing(tmp_path: Path) -> None:
    text = "path\tlabel\ta, b, c\nphotos/0.png\tcat\t1\nphotos/1.png\tdog\t2\n"
    assert rows(opened(images(tmp_path, 2) / "a.tsv", text)[0]) == {"0.png": "cat", "1.png": "dog"}


def test_other_files_beside_the_images_are_counted(tmp_path: Path) -> None:
    text = "path,label\n0.png,cat\n1.png,dog\n"
    for name in ("2.tif", ".3.png"):
        (images(tmp_path, 2) / "photos" / name).touch()
    source, _ = opened(tmp_path / "photos" / "labels.csv", text)
    assert [(Path(item.path).name, item.reason) for item in source.left_out] == [
        (".3.png", "hidden files"),
        ("2.tif", ".tif (a format that is not read: convert to JPEG or PNG)"),
    ]


def test_a_further_column_next_to_a_split_is_not_a_second_one(tmp_path: Path) -> None:
    text = "path,label,split,fold\n" + "".join(
        f"photos/{i}.png,{label},{split},3\n"
        for i, (label, split) in enumerate([("cat", "train"), ("dog", "train"), ("dog", "test")])
    )
    source, _ = opened(images(tmp_path, 3) / "labels.csv", text)
    assert rows(source) == {"0.png": "cat", "1.png": "dog"}
    assert rows(source, "test") == {"2.png": "dog"}


def test_rows_that_differ_about_an_image_are_all_listed(tmp_path: Path) -> None:
    text = (
        "path,label\nphotos/0.png,cat\nphotos/0.png,dog\nphotos/1.png,dog\nphotos/1.png,\n"
        "photos/2.png,cat\nphotos/2.png,cat\n"
    )
    with pytest.raises(DataError) as error:
        opened(images(tmp_path, 3) / "a.csv", text)
    assert str(error.value).splitlines() == [
        f"{tmp_path}/a.csv: 2 images with rows that differ (keep one row each):",
        f"  {tmp_path}/photos/0.png: row 2 cat, row 3 dog",
        f"  {tmp_path}/photos/1.png: row 4 dog, row 5 no label",
    ]


def test_an_image_is_the_same_however_its_path_is_written(tmp_path: Path) -> None:
    text = "path,label\nphotos/0.png,cat\n./photos/../photos/0.png,dog\nphotos/1.png,dog\n"
    with pytest.raises(DataError, match="1 image with rows that differ"):
        opened(images(tmp_path, 2) / "a.csv", text)


def test_a_name_is_found_in_the_other_form_of_unicode(tmp_path: Path) -> None:
    images(tmp_path, 2)
    apart, composed = (unicodedata.normalize(form, "caf\u00e9.png") for form in ("NFD", "NFC"))
    (tmp_path / "photos" / "0.png").rename(tmp_path / "photos" / apart)
    text = f"path,label\nphotos/{composed},cat\nphotos/1.png,dog\n"
    source, _ = opened(tmp_path / "a.csv", text)
    assert rows(source) == {apart: "cat", "1.png": "dog"}


def test_the_column_of_labels_can_be_named(tmp_path: Path) -> None:
    images(tmp_path, 2)
    (tmp_path / "a.csv").write_text(
        "path,fine,label\nphotos/0.png,pug,dog\nphotos/1.png,tabby,cat\n"
    )
    found = table(tmp_path / "a.csv", print, "fine")
    assert rows(found) == {"0.png": "pug", "1.png": "tabby"}
    with pytest.raises(DataError, match="`coarse` is missing"):
        table(tmp_path / "a.csv", print, "coarse")


def test_folders_that_hold_equally_many_of_the_names_are_all_named(tmp_path: Path) -> None:
    images(images(tmp_path, 2, "test_images"), 2, "train_images")
    message = f"2 images of these names (in any case) in {tmp_path}/test_images and as many in "
    with pytest.raises(DataError, match=re.escape(f"{message}{tmp_path}/train_images: change the")):
        opened(tmp_path / "train.csv", "path,label\n0.png,cat\n1.png,dog\n")


def test_a_list_of_doubtful_labels_is_no_table_of_labels(tmp_path: Path) -> None:
    images(tmp_path, 2)
    audited = "path,label,suggested,score,reason\nphotos/0.png,cat,dog,0.9,label\n"
    (tmp_path / "audit.csv").write_text(audited)
    with pytest.raises(DataError, match=r"audit\.csv is a list of doubtful .*--drop or --relabel"):
        table(tmp_path / "audit.csv", print)
    _, said = opened(tmp_path / "labels.csv", "path,label\nphotos/0.png,cat\nphotos/1.png,dog\n")
    assert said == []


def test_another_table_of_labels_beside_it_is_named(tmp_path: Path) -> None:
    images(tmp_path, 3)
    (tmp_path / "test.csv").write_text("path,label\nphotos/2.png,cat\n")
    (tmp_path / "prices.csv").write_text("path,price\nphotos/2.png,3\n")
    text = "path,label\nphotos/0.png,cat\nphotos/1.png,dog\n"
    _, said = opened(tmp_path / "train.csv", text)
    assert said == [
        f"{tmp_path}/test.csv is a table of labels, too, and is not read: put its rows into one "
        "table, with a column `split` if they are test"
    ]


def test_an_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    text = "path,label,split\nphotos/0.png,cat,train\nphotos/0.png,cat,test\nphotos/1.png,dog,\n"
    with pytest.raises(DataError, match=r"row 2 cat \(train\), row 3 cat \(test\)"):
        opened(images(tmp_path, 2) / "a.csv", text)


def test_a_row_that_is_there_twice_counts_once_and_that_is_said(tmp_path: Path) -> None:
    text = "path,label\nphotos/0.png,cat\nphotos/0.png,cat\nphotos/1.png,dog\n"
    source, said = opened(images(tmp_path, 2) / "a.csv", text)
    assert source.splits["train"].labels.tolist() == [0, 1]
    assert said == [f"{tmp_path}/a.csv: 1 row left out, since another names the image, alike"]


def test_labels_are_one_class_whatever_their_blanks_and_differ_in_case(tmp_path: Path) -> None:
    text = "path,label\nphotos/0.png,cat\nphotos/1.png, cat \nphotos/2.png,Cat\n"
    source, said = opened(images(tmp_path, 3) / "a.csv", text)
    assert rows(source) == {"2.png": "Cat", "0.png": "cat", "1.png": "cat"}
    assert said == [f"{tmp_path}/a.csv: the classes Cat, cat differ in case only"]


def test_images_that_the_table_does_not_list_are_left_out(tmp_path: Path) -> None:
    images(tmp_path, 1, "elsewhere")
    text = "path,label\nphotos/0.png,cat\nphotos/1.png,dog\n"
    source, _ = opened(images(tmp_path, 3) / "a.csv", text)
    assert [(i.path, i.reason) for i in source.left_out] == [
        (str(tmp_path / "photos" / "2.png"), "images that the table does not list")
    ]


def test_some_images_that_are_not_there_are_unreadable(tmp_path: Path) -> None:
    text = "path,label\nphotos/0.png,cat\nphotos/1.png,dog\nphotos/9.png,dog\n"
    source, _ = opened(images(tmp_path, 2) / "a.csv", text)
    assert rows(source) == {"0.png": "cat", "1.png": "dog", "9.png": "dog"}
    with pytest.raises(UnreadableImage, match="No such file"):
        source.splits["train"].read(2)


@pytest.mark.parametrize("change", ["label", "image", "split"])
def test_the_fingerprint_changes_with_the_table_and_its_images(tmp_path: Path, change: str) -> None:
    text = "path,label,split\nphotos/0.png,cat,\nphotos/1.png,dog,\nphotos/2.png,dog,train\n"
    source, _ = opened(images(tmp_path, 3) / "a.csv", text)
    again, _ = opened(tmp_path / "a.csv", text)
    assert again.fingerprint == source.fingerprint
    if change == "image":
        (tmp_path / "photos" / "0.png").write_bytes(digit_rows()[50][1])
    other = {"label": text.replace("dog,train", "cat,train"), "split": text.replace("train", "val")}
    changed, _ = opened(tmp_path / "a.csv", other.get(change, text))
    assert changed.fingerprint != source.fingerprint


def test_images_among_results_are_no_concern_of_a_table(tmp_path: Path) -> None:
    images(tmp_path, 4)
    report = tmp_path / "runs" / "bench"
    report.mkdir(parents=True)
    for name in ("report.json", "report.html"):
        (report / name).touch()
    images(tmp_path, 1, "runs")
    text = "path,label\nphotos/0.png,cat\nphotos/1.png,dog\nruns/0.png,dog\n"
    source, _ = opened(tmp_path / "labels.csv", text)
    assert len(source.splits["train"].labels) == 3
    assert sum(i.reason == "images that the table does not list" for i in source.left_out) == 2
    with pytest.raises(DataError, match="none of its images is there"):
        opened(tmp_path / "labels.csv", "path,label\nno/0.png,cat\nno/1.png,dog\n")
