from __future__ import annotations

from pathlib import Path

import pytest

from labelcurve.bundle.errors import DataError
from labelcurve.training.data import checks
from tests.training.data.test_dataset import TRAIN, loaded
from tests.training.sets import write_folder, write_parquet


def corrupt(root: Path) -> list[Path]:
    """Makes three images of a folder unreadable, each in its own way."""
    files = sorted(root.rglob("*.png"))
    files[3].write_bytes(b"")
    files[50].write_bytes(b"# a text that was saved as an image")
    files[70].write_bytes(files[70].read_bytes()[:-30])
    return [files[3], files[50], files[70]]


def test_unreadable_images_are_listed_with_their_reason(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    bad = corrupt(tmp_path / "set")
    with pytest.raises(DataError, match="set: 3 images cannot be read") as error:
        loaded(tmp_path / "set", tmp_path / "cache")
    lines = str(error.value).splitlines()
    assert lines[1] == f"  {bad[0]}: the file is empty: an image is needed"
    assert lines[2].startswith(f"  {bad[1]}: not an image that can be read (35 bytes)")
    assert lines[3].startswith(f"  {bad[2]}: the PNG image is truncated or corrupt")
    assert "--skip-unreadable" in lines[-1]


def test_unreadable_images_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    bad = corrupt(tmp_path / "set")
    found, said = loaded(tmp_path / "set", tmp_path / "cache", skip_unreadable=True)
    assert len(found.train) + len(found.test) == 97
    (line,) = [line for line in said if line.startswith("set: 3 unreadable images left out:")]
    assert found.left_out == {"unreadable images": 3}
    assert all(str(path) in line for path in bad)
    for path in bad:
        path.unlink()
    without, _ = loaded(tmp_path / "set", tmp_path / "cache")
    assert without.hash == found.hash


def test_a_list_of_many_unreadable_images_is_cut(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    for path in sorted(tmp_path.rglob("*.png"))[:30]:
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="30 images cannot be read") as error:
        loaded(tmp_path / "set", tmp_path / "cache")
    assert str(error.value).count("\n  /") == checks.LISTED
    assert "and 10 more" in str(error.value)


def test_from_the_cache_unreadable_images_are_named_where_they_are_now(tmp_path: Path) -> None:
    write_folder(tmp_path / "old", TRAIN)
    corrupt(tmp_path / "old")
    loaded(tmp_path / "old", tmp_path / "cache", skip_unreadable=True)
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(DataError) as error:
        loaded(tmp_path / "new", tmp_path / "cache")
    assert str(tmp_path / "new") in str(error.value)
    assert str(tmp_path / "old") not in str(error.value)


def test_in_parquet_unreadable_images_are_named_by_row(tmp_path: Path) -> None:
    rows = [*TRAIN[:30], (2, b"no image"), *TRAIN[30:]]
    write_parquet(tmp_path / "set" / "train.parquet", rows)
    with pytest.raises(DataError, match=r"train\.parquet row 30: not an image that can be read"):
        loaded(tmp_path / "set", tmp_path / "cache")


def test_without_labels_unreadable_images_are_listed_too(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    bad = corrupt(tmp_path / "set")
    with pytest.raises(DataError, match="set: 3 images cannot be read") as error:
        loaded(tmp_path / "set", tmp_path / "cache", labelled=False)
    assert all(str(path) in str(error.value) for path in bad)
    found, _ = loaded(tmp_path / "set", tmp_path / "cache", labelled=False, skip_unreadable=True)
    assert len(found.train) == 97


def test_of_many_lines_twenty_are_listed() -> None:
    lines = [str(i) for i in range(21)]
    assert checks.block(lines[:20], 20) == "\n".join(f"  {i}" for i in range(20))
    assert checks.block(lines, 21).splitlines()[-2:] == ["  19", "  and 1 more"]
