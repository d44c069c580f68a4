"""Rows of the table of `audit`, dropped and relabelled when a data set is loaded."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from labelcurve.bundle.errors import DataError
from labelcurve.training.data import dataset
from labelcurve.training.data.corrections import Doubt, identity, read, summary, write
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.sources import Selection
from tests.training.sets import digit_rows, write_folder, write_parquet

HEADER = "path,label,suggested,score,reason\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten digits of each class in train/, two in test/."""
    data = tmp_path / "data"
    write_folder(data / "train", digit_rows(10))
    write_folder(data / "test", [row for row in digit_rows(12) if row not in digit_rows(10)])
    return data


def load(data: Path | str, drop: Path | None = None, relabel: Path | None = None) -> Data:
    chosen = Selection(str(data), drop=drop, relabel=relabel)
    cache = Path(data).parent / "cache" if isinstance(data, Path) else None
    return dataset.load(chosen, size=8, cache=cache, say=lambda _: None)


def table(folder: Path, *lines: str) -> Path:
    path = folder / "audit.csv"
    path.write_text(HEADER + "".join(f"{line}\n" for line in lines))
    return path


def labels(images: Data, data: Path) -> dict[str, str]:
    """The class of each training image, by name."""
    return {
        identity(images.train.where(i), str(data)): images.class_names[images.train.labels[i]]
        for i in range(len(images.train))
    }


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    rows = [
        Doubt("cat/a, b.png", "cat", "dog", 0.93, "label"),
        Doubt("cat/2.png", "cat", "", 0.9, 'duplicate: same pixels as cat/"3".png (cat)'),
    ]
    (tmp_path / "audit.csv").write_text(write(rows))
    found = list(read(tmp_path / "audit.csv", "--drop").values())
    assert [(r.path, r.label, r.suggested, r.reason) for r in found] == [
        (r.path, r.label, r.suggested, r.reason) for r in rows
    ]
    assert [r.line for r in found] == [2, 3]
    assert summary(rows) == {"label": 1, "duplicate": 1}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_that_a_spreadsheet_has_saved_is_read(tmp_path: Path, delimiter: str) -> None:
    text = io.StringIO()
    table = csv.writer(text, delimiter=delimiter, lineterminator="\r\n")
    table.writerow(("path", "label", "suggested"))
    # The header tells the delimiter: the names hold more of the others than the table has.
    several = "".join(9 * (other + " ") for other in ",;\t" if other != delimiter)
    table.writerows((("a.png", " cat ", "dog"), (f"b{several}.png", "", "")))
    (tmp_path / "a.csv").write_bytes(text.getvalue().encode("utf-8-sig"))
    found = read(tmp_path / "a.csv", "--drop")
    assert found == {
        "a.png": Doubt("a.png", "cat", "dog", 0.0, "", 2),
        f"b{several}.png": Doubt(f"b{several}.png", "", "", 0.0, "", 3),
    }
    (tmp_path / "a.csv").write_bytes(b"path,suggested\ncaf\xe9.png,a\n")
    with pytest.raises(DataError, match=r"--drop .*a\.csv is not UTF-8 \(byte 18\)"):
        read(tmp_path / "a.csv", "--drop")


def test_dropped_images_are_gone_and_relabelled_ones_have_the_new_label(
    folder: Path, tmp_path: Path
) -> None:
    before = labels(load(folder), folder)
    drop = table(tmp_path, "train/0/00000.png,0,6,0.9,label", "train/3/00030.png,3,,1.0,duplicate")
    dropped = load(folder, drop=drop)
    assert (dropped.dropped, dropped.relabelled) == (2, 0)
    gone = before.keys() - labels(dropped, folder).keys()
    assert gone == {"train/0/00000.png", "train/3/00030.png"}
    assert dropped.pixels_hash == load(folder).pixels_hash  # the same extractor fits
    assert dropped.hash != load(folder).hash
    relabelled = load(folder, relabel=drop)
    assert (relabelled.dropped, relabelled.relabelled) == (0, 1)
    assert labels(relabelled, folder) == before | {"train/0/00000.png": "6"}


def test_relabelling_gives_the_data_set_that_other_folders_would(
    folder: Path, tmp_path: Path
) -> None:
    relabelled = load(folder, relabel=table(tmp_path, "train/0/00000.png,0,6,0.9,label"))
    (folder / "train/0/00000.png").rename(folder / "train/6/00000.png")
    assert relabelled.hash == load(folder).hash


def test_rows_that_suggest_no_label_are_counted(folder: Path, tmp_path: Path) -> None:
    rows = "train/0/00000.png,0,6,0.9,label", "train/3/00030.png,3,,1.0,duplicate"
    tested = sorted((folder / "test").rglob("*.png"))[0].relative_to(folder)
    path = table(tmp_path, *rows, "train/3/00031.png,3,,1.0,duplicate", f"{tested},0,,1.0,empty")
    said: list[str] = []
    chosen = Selection(str(folder), relabel=path)
    dataset.load(chosen, size=8, cache=tmp_path / "cache", say=said.append)
    assert (
        "--relabel: 1 training image with another label now, 3 rows suggest no label and change "
        "nothing" in said
    )
    assert any(line.startswith("1 test image named: left unchanged") for line in said)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("flag", ["drop", "relabel"])
def test_a_table_of_other_labels_than_the_data_has_now_is_refused(
    folder: Path, tmp_path: Path, flag: str, split: str
) -> None:
    # Corrected by hand since `audit` was run: the old suggestion must not undo it.
    name = sorted((folder / split / "0").iterdir())[0].relative_to(folder)
    path = table(tmp_path, "train/3/00030.png,3,,1.0,duplicate", f"{name},6,8,0.9,label")
    message = (
        rf"line 3: the label of {name} is '6' there and '0' in --data .*: the labels "
        "were changed since the table was written. Run `labelcurve audit` again"
    )
    with pytest.raises(DataError, match=message):
        load(folder, **{flag: path})


def test_test_images_stay_as_they_are_and_the_output_says_so(folder: Path, tmp_path: Path) -> None:
    name = sorted((folder / "test").rglob("*.png"))[0].relative_to(folder)
    said: list[str] = []
    path = table(tmp_path, f"{name},0,1,0.9,label")
    for chosen in (Selection(str(folder), drop=path), Selection(str(folder), relabel=path)):
        found = dataset.load(chosen, size=8, cache=tmp_path / "cache", say=said.append)
        assert found.hash == load(folder).hash
        assert any("1 test image named: left unchanged" in line for line in said)
        said.clear()


def test_without_a_test_split_test_is_taken_before(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", digit_rows(10))
    whole = load(data)
    names = labels(whole, data)
    drop = table(tmp_path, *(f"{name},,,1,label" for name in list(names)[:30]))
    found = load(data, drop=drop)
    assert found.dropped == 30
    assert np.array_equal(found.test.digests[:], whole.test.digests[:])


def test_rows_of_parquet_and_of_the_digits_have_names(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_parquet(data / "train.parquet", digit_rows(10), rows_per_group=30)
    drop = table(tmp_path, "train.parquet row 42,,,1,label")
    assert len(load(data, drop=drop).train) + len(load(data).test) == 99
    chosen = Selection("digits", drop=table(tmp_path, "digit 5,5,9,1,label"))
    images = dataset.load(chosen, cache=tmp_path / "cache", say=lambda _: None)
    assert images.dropped + sum(images.test.where(i) == "digit 5" for i in range(355)) == 1


def test_an_unreadable_image_that_is_dropped_stops_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / "train/0/00000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 image cannot be read"):
        load(folder)
    drop = table(tmp_path, "train/0/00000.png,0,,1,unreadable: it is no image")
    assert len(load(folder, drop=drop).train) == 99


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["train/0/none.png,0,6,1,label"],
            "line 2: no image of .* named 'train/0/none.png'",
        ),
        (["train/0/00000.png,0,sechs,1,label"], "line 2: 'sechs' is not a class of --data"),
        (["train/0/00000.png,0,6,1,label"] * 2, "line 3: train/0/00000.png is in line 2, too"),
        (["train/0/00000.png,0,6"], "line 2 has more or fewer cells than the header"),
    ],
)
def test_what_cannot_be_applied_names_its_line(
    folder: Path, tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(folder, relabel=table(tmp_path, *lines))


def test_one_image_is_not_dropped_and_relabelled(folder: Path, tmp_path: Path) -> None:
    path = table(tmp_path, "train/0/00000.png,0,6,1,label")
    with pytest.raises(DataError, match=r"line 2: train/0/00000\.png is in --drop"):
        load(folder, drop=path, relabel=path)


def test_another_table_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("image,class\n1.png,0\n")
    with pytest.raises(DataError, match="has no column 'path' and no 'suggested'"):
        load(folder, drop=tmp_path / "other.csv")
    with pytest.raises(DataError, match=r"--drop .*none.csv cannot be read"):
        load(folder, drop=tmp_path / "none.csv")
