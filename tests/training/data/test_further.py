"""Unlabelled images from a separate folder, in addition to those of the data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from labelcurve.bundle.errors import DataError
from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.sources import Selection
from tests.training.sets import Row, digit_rows, write_folder

LABELLED = tuple(row for row in digit_rows(10) if row[0] < 2)
OTHERS = tuple(row for row in digit_rows(10) if row[0] > 6)


def loaded(data: Path, cache: Path, unlabelled: Path | None) -> tuple[Data, list[str]]:
    said: list[str] = []
    chosen = Selection(str(data), unlabelled=unlabelled)
    return dataset.load(chosen, cache=cache, say=said.append), said


def n_unlabelled(found: Data) -> int:
    return len(found.train) - found.train.n_labelled


def write_pool(folder: Path, rows: tuple[Row, ...] = OTHERS) -> Path:
    folder.mkdir(parents=True)
    for i, (_, file) in enumerate(rows):
        (folder / f"{i}.png").write_bytes(file)
    return folder


@pytest.mark.parametrize("further", ["set/unlabelled", "set", "link", "set/../set/unlabelled"])
def test_images_that_are_reached_in_two_ways_count_once(tmp_path: Path, further: str) -> None:
    write_folder(tmp_path / "set", LABELLED)
    write_pool(tmp_path / "set/unlabelled")
    (tmp_path / "link").symlink_to("set/unlabelled")
    alone, _ = loaded(tmp_path / "set", tmp_path / "cache", None)
    found, said = loaded(tmp_path / "set", tmp_path / "cache", tmp_path / further)
    assert n_unlabelled(found) == n_unlabelled(alone) == 30
    assert (found.hash, found.pixels_hash) == (alone.hash, alone.pixels_hash)
    assert found.left_out["unlabelled images read already"] == 30
    assert "30 unlabelled images read already" in said[-1]


def test_cached_pixels_are_those_of_the_images_that_count(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", LABELLED)
    write_pool(tmp_path / "set/unlabelled", OTHERS[:10])
    pool = write_pool(tmp_path / "pool", OTHERS[10:])
    for name, n in (("aa.png", 0), ("zz.png", 9)):  # before and after the new ones
        (pool / name).symlink_to(tmp_path / f"set/unlabelled/{n}.png")
    for _ in range(2):  # decoded, and then from the cache
        found, _ = loaded(tmp_path / "set", tmp_path / "cache", pool)
        files = [found.train.read(int(i)) for i in np.flatnonzero(found.train.labels < 0)]
        assert sorted(files) == sorted(file for _, file in OTHERS)
        assert found.left_out == {"unlabelled images read already": 2}
    for name in ("aa.png", "zz.png"):  # the same bytes, in separate files
        content = (pool / name).read_bytes()
        (pool / name).unlink()
        (pool / name).write_bytes(content)
    found, _ = loaded(tmp_path / "set", tmp_path / "cache", pool)
    assert (n_unlabelled(found), found.left_out) == (32, {})


def test_rows_of_a_table_without_a_label_count_once_too(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", LABELLED)
    write_pool(tmp_path / "photos/new")
    images = sorted((tmp_path / "photos").rglob("*.png"))
    lines = [f"{i},{i.parent.name if i.parent.name != 'new' else ''}\n" for i in images[:-5]]
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(lines))
    found, _ = loaded(tmp_path / "labels.csv", tmp_path / "cache", tmp_path / "photos")
    assert n_unlabelled(found) == 30


def test_within_a_folder_a_link_to_an_image_is_passed_over(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool")
    (pool / "z").symlink_to("1.png")
    (pool / "z.png").symlink_to("1.png")
    (tmp_path / "far").mkdir()
    (pool / "again").symlink_to(tmp_path / "far")
    (tmp_path / "far/0.png").symlink_to(pool / "0.png")
    write_folder(tmp_path / "set", LABELLED)
    found, _ = loaded(tmp_path / "set", tmp_path / "cache", pool)
    assert n_unlabelled(found) == 30
    assert found.left_out["unlabelled images read already"] == 2


@pytest.mark.parametrize("place", ["set/pool", "set/train/pool", "set/pool/deeper"])
def test_a_folder_that_is_a_class_at_the_same_time_is_refused(tmp_path: Path, place: str) -> None:
    write_folder(tmp_path / ("set/train" if "train" in place else "set"), LABELLED)
    pool = write_pool(tmp_path / place)
    with pytest.raises(DataError) as error:
        loaded(tmp_path / "set", tmp_path / "cache", pool)
    assert str(error.value).startswith(
        f"--unlabelled {pool}: each of its 30 images is read as the class 'pool' of --data "
        f"{tmp_path}/set, too. If they have no label, move the folder out of --data, or rename it "
        "unlabelled/"
    )


def test_a_folder_that_holds_several_classes_is_not_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "all", LABELLED)
    write_pool(tmp_path / "more")
    (tmp_path / "all/loose.png").write_bytes(OTHERS[0][1])
    found, _ = loaded(tmp_path / "all", tmp_path / "cache", tmp_path / "all")
    assert n_unlabelled(found) == 1
