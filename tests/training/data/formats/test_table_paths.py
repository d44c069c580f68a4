"""Paths in a table that a file system or a library would refuse."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from labelcurve.bundle.errors import DataError
from labelcurve.training.data.formats.table import table
from tests.permissions import forbidden
from tests.training.sets import digit_rows


def written(root: Path, *more: str) -> Path:
    """A table of four images in two folders, and of further rows."""
    for number, name in enumerate(("a/0", "a/1", "b/0", "b/1")):
        (root / name).parent.mkdir(exist_ok=True)
        (root / f"{name}.png").write_bytes(digit_rows()[number][1])
    file = root / "labels.csv"
    rows = ("path,label", "a/0,cat", "a/1.png,dog", "b/0.png,cat", "b/1.png,dog", *more)
    file.write_text("\n".join(rows))
    return file


@pytest.mark.parametrize("length", [256, 100_000])
def test_a_path_that_is_too_long_names_its_row(tmp_path: Path, length: int) -> None:
    message = f"row 6: {'x' * 80} cannot be looked up: File name too long"
    with pytest.raises(DataError, match=message):
        table(written(tmp_path, f"{'x' * length},cat"), print)


def test_a_path_that_is_merely_odd_is_an_image_that_is_not_there(tmp_path: Path) -> None:
    source = table(written(tmp_path, "//[cat]/1.jpg,cat"), print)
    assert len(source.splits["train"].labels) == 5


def test_a_row_is_alike_however_its_split_is_spelt(tmp_path: Path) -> None:
    file = written(tmp_path)
    head, *rows = file.read_text().split("\n")
    file.write_text("\n".join([f"{head},split", *(f"{row}," for row in rows), "a/0,cat,Training"]))
    said: list[str] = []
    assert len(table(file, said.append).splits["train"].labels) == 4
    assert said == [f"{file}: 1 row left out, since another names the image, alike"]


def test_a_folder_that_holds_none_of_its_images_need_not_be_readable() -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        root.chmod(0o755)
        file = written(root)
        (root / "private").mkdir()
        with forbidden(root / "private"):
            source = table(file, print)
        assert [(item.path, item.reason) for item in source.left_out] == [
            (str(root / "private"), "folders that cannot be read")
        ]
        with (
            forbidden(root / "a"),
            pytest.raises(DataError, match="row 2: a/0 cannot be looked up: Permission denied"),
        ):
            table(file, print)
