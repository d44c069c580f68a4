from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np

from labelcurve.training.data import dataset
from tests.training.data.test_dataset import TRAIN, assert_same, cached, loaded
from tests.training.sets import write_folder


def test_a_second_start_decodes_nothing_again(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    cache = tmp_path / "cache"
    first, _ = loaded(tmp_path / "set", cache)
    files = cached(cache)
    assert any(name.endswith("train-images.npy") for name in files)
    second, _ = loaded(tmp_path / "set", cache)
    assert cached(cache) == files
    assert second.hash == first.hash
    assert_same(first.train, second.train)


def test_the_cache_goes_by_content_and_not_by_place(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    loaded(tmp_path / "set", tmp_path / "cache")
    files = cached(tmp_path / "cache")
    shutil.copytree(tmp_path / "set", tmp_path / "copy")
    shutil.rmtree(tmp_path / "set")
    found, _ = loaded(tmp_path / "copy", tmp_path / "cache")
    assert cached(tmp_path / "cache") == files
    assert found.train.read(0), "file bytes come from where they are now"


def test_another_size_is_decoded_beside(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    small, _ = loaded(tmp_path / "set", tmp_path / "cache")
    large = dataset.load(str(tmp_path / "set"), size=20, cache=tmp_path / "cache", say=print)
    assert small.train.images.shape[1:] == (8, 8, 3)
    assert large.train.images.shape[1:] == (20, 20, 3)
    assert large.hash == small.hash, "the hash is of the images, not of their size in training"


def test_the_cache_can_be_cleared_and_downloads_stay(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    loaded(tmp_path / "set", tmp_path / "cache")
    (tmp_path / "cache" / "downloads").mkdir()
    dataset.clear(tmp_path / "cache")
    assert cached(tmp_path / "cache") == {}
    assert (tmp_path / "cache" / "downloads").exists()
    dataset.clear(tmp_path / "cache")


def test_cached_pixels_cannot_be_changed_by_mistake(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    found = dataset.load(str(tmp_path / "set"), size=8, cache=tmp_path / "cache", say=print)
    memory = np.load(next((tmp_path / "cache").rglob("train-images.npy")), mmap_mode="r")
    assert not memory.flags.writeable
    assert found.train.images.dtype == np.uint8


def test_a_half_written_cache_is_never_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    cache = tmp_path / "cache"
    whole, _ = loaded(tmp_path / "set", cache)
    (folder,) = (cache / "pixels").iterdir()
    (folder / "meta.json").unlink()
    (folder / "train-images.npy").write_bytes(b"torn")
    again, _ = loaded(tmp_path / "set", cache)
    assert_same(again.train, whole.train)
    assert list((cache / "pixels").iterdir()) == [folder], "and no working folder is left"


def test_a_working_folder_of_a_killed_run_is_never_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    cache = tmp_path / "cache"
    whole, _ = loaded(tmp_path / "set", cache)
    (folder,) = (cache / "pixels").iterdir()
    folder.rename(folder.with_name(f".{folder.name}-abc"))
    (cache / "pixels" / f".{folder.name}-abc" / "train-images.npy").write_bytes(b"torn")
    again, _ = loaded(tmp_path / "set", cache)
    assert_same(again.train, whole.train)


def test_a_cache_that_cannot_be_written_is_announced_and_done_without(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    (tmp_path / "cache").write_text("a file in the way")
    found, said = loaded(tmp_path / "set", tmp_path / "cache")
    assert len(found.train) == 80
    assert any(
        re.search(r"the cache .*pixels cannot be written \(.+\): the images are decoded for", line)
        for line in said
    )
