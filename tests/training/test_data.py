from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle import preprocess
from bundle.errors import DataError
from tests.training.sets import Row, digit_rows, write_folder, write_parquet
from training import data, fractions
from training.data import Data, Split

ROOT = Path(__file__).parent.parent.parent
CIFAR10 = ROOT.parent / "shared" / "datasets" / "cifar10"

TRAIN = tuple(row for i, row in enumerate(digit_rows(12)) if i % 12 < 10)
TEST = tuple(row for i, row in enumerate(digit_rows(12)) if i % 12 >= 10)


def loaded(path: Path, cache: Path, **options: bool) -> tuple[Data, list[str]]:
    said: list[str] = []
    found = data.load(str(path), size=8, cache=cache, say=said.append, **options)
    return found, said


def assert_same(a: Split, b: Split) -> None:
    assert np.array_equal(a.images, b.images)
    assert np.array_equal(a.labels, b.labels)
    assert np.array_equal(a.digests, b.digests)


def shuffled(rows: tuple[Row, ...], seed: int) -> list[Row]:
    return random.Random(seed).sample(rows, len(rows))


def cached(cache: Path) -> dict[str, tuple[int, int]]:
    """Every file below `pixels/`, with what changes when it is written again."""
    files = [file for file in (cache / "pixels").rglob("*") if file.is_file()]
    return {str(file): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def test_rows_are_what_prepare_gives_and_read_gives_the_file(tmp_path: Path) -> None:
    write_folder(tmp_path / "digits", TRAIN)
    found, _ = loaded(tmp_path / "digits", tmp_path / "cache")
    known = {file: label for label, file in TRAIN}
    for split in (found.train, found.test):
        for i in range(len(split)):
            file = split.read(i)
            assert known[file] == split.labels[i]
            assert np.array_equal(split.images[i], preprocess.prepare(file, 8))


def test_the_same_images_are_the_same_data_whatever_holds_them(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "train", TRAIN)
    write_folder(tmp_path / "a" / "test", TEST)
    write_folder(tmp_path / "b" / "train", shuffled(TRAIN, 1))
    write_folder(tmp_path / "b" / "test", shuffled(TEST, 2))
    write_parquet(tmp_path / "c" / "train-0.parquet", shuffled(TRAIN, 3)[:40])
    write_parquet(tmp_path / "c" / "train-1.parquet", shuffled(TRAIN, 3)[40:], image="img")
    write_parquet(tmp_path / "c" / "test-0.parquet", shuffled(TEST, 4))
    sets = [loaded(tmp_path / name, tmp_path / "cache")[0] for name in "abc"]
    for other in sets[1:]:
        assert other.hash == sets[0].hash
        assert_same(other.train, sets[0].train)
        assert_same(other.test, sets[0].test)
    subsets = [fractions.subset(s.train, s.class_names, 0.3, 5) for s in sets]
    assert len({subset.hash for subset in subsets}) == 1
    assert len({subset.train.tobytes() for subset in subsets}) == 1


def test_the_hash_of_the_pixels_knows_no_order_no_format_and_no_label(tmp_path: Path) -> None:
    other_labels = [((label + 3) % 10, file) for label, file in shuffled(TRAIN, 5)]
    write_folder(tmp_path / "a" / "train", TRAIN)
    write_folder(tmp_path / "b" / "train", other_labels, tuple("abcdefghij"))
    write_folder(tmp_path / "a" / "test", TEST)
    write_folder(tmp_path / "b" / "test", TEST, tuple("abcdefghij"))
    write_parquet(tmp_path / "c" / "train.parquet", shuffled(TRAIN, 3))
    write_parquet(tmp_path / "c" / "test.parquet", TEST[::2])
    sets = [loaded(tmp_path / name, tmp_path / "cache")[0] for name in "abc"]
    assert len({found.pixels_hash for found in sets}) == 1
    assert len({found.hash for found in sets}) == 3
    write_folder(tmp_path / "d", TRAIN)
    unlabelled, _ = loaded(tmp_path / "d", tmp_path / "cache", labelled=False)
    assert unlabelled.pixels_hash == sets[0].pixels_hash
    assert loaded(tmp_path / "d", tmp_path / "cache")[0].pixels_hash != sets[0].pixels_hash, (
        "a fifth of it is test"
    )


def test_the_hash_of_the_pixels_changes_with_one_image(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", TRAIN)
    write_folder(tmp_path / "b", TRAIN[:-1])
    write_folder(tmp_path / "c", [*TRAIN[:-1], digit_rows(13)[12]])
    sets = [loaded(tmp_path / name, tmp_path / "cache", labelled=False)[0] for name in "abc"]
    assert len({found.pixels_hash for found in sets}) == 3


def test_without_labels_all_images_are_for_training_and_none_has_a_class(tmp_path: Path) -> None:
    for number, (_, file) in enumerate(TRAIN[:30]):
        place = tmp_path / "set" / ("flat" if number % 2 else "deep/er")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(file)
    found, said = loaded(tmp_path / "set", tmp_path / "cache", labelled=False)
    assert (len(found.train), len(found.test)) == (30, 0)
    assert found.class_names == ()
    assert set(found.train.labels.tolist()) == {0}
    assert said == []
    files = {file for _, file in TRAIN[:30]}
    assert {found.train.read(i) for i in range(30)} == files
    assert np.array_equal(found.train.images[7], preprocess.prepare(found.train.read(7), 8))


def test_without_labels_unreadable_images_are_listed_too(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    bad = spoil(tmp_path / "set")
    with pytest.raises(DataError, match="set: 3 images cannot be read") as error:
        loaded(tmp_path / "set", tmp_path / "cache", labelled=False)
    assert all(str(path) in str(error.value) for path in bad)
    found, _ = loaded(tmp_path / "set", tmp_path / "cache", labelled=False, skip_unreadable=True)
    assert len(found.train) == 97


def test_without_a_test_split_the_same_fifth_is_held_out_whatever_the_names(
    tmp_path: Path,
) -> None:
    write_folder(tmp_path / "a", TRAIN)
    write_parquet(tmp_path / "b" / "all.parquet", shuffled(TRAIN, 1))
    (a, said), (b, _) = (loaded(tmp_path / name, tmp_path / "cache") for name in "ab")
    assert a.hash == b.hash
    assert_same(a.test, b.test)
    assert np.bincount(a.test.labels).tolist() == [2] * 10
    assert np.bincount(a.train.labels).tolist() == [8] * 10
    assert "a: no test split, so a stratified fifth is test: 20 of 100 images" in said


def test_labels_come_from_class_names_and_not_from_the_order_of_folders(tmp_path: Path) -> None:
    names = ("zebra", "ant", "10", "9", "Übu", "cat", "dog", "emu", "fox", "gnu")
    write_folder(tmp_path / "set", TRAIN, names)
    found, _ = loaded(tmp_path / "set", tmp_path / "cache")
    assert found.class_names == tuple(sorted(names))
    known = {file: names[label] for label, file in TRAIN}
    for i in range(len(found.train)):
        assert found.class_names[found.train.labels[i]] == known[found.train.read(i)]


@pytest.mark.parametrize("change", ["pixels", "label", "split", "name"])
def test_the_hash_changes_with_what_matters(tmp_path: Path, change: str) -> None:
    train, test = list(TRAIN), list(TEST)
    names = list("0123456789")
    write_folder(tmp_path / "before" / "train", train)
    write_folder(tmp_path / "before" / "test", test)
    if change == "pixels":
        train[0] = (train[0][0], digit_rows(13)[12][1])
    elif change == "label":
        train[0] = (3, train[0][1])
    elif change == "split":
        train[0], test[0] = test[0], train[0]
    else:
        names[0] = "zero"
    write_folder(tmp_path / "after" / "train", train, names)
    write_folder(tmp_path / "after" / "test", test, names)
    hashes = [loaded(tmp_path / s, tmp_path / "cache")[0].hash for s in ("before", "after")]
    assert hashes[0] != hashes[1]


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
    large = data.load(str(tmp_path / "set"), size=20, cache=tmp_path / "cache", say=print)
    assert small.train.images.shape[1:] == (8, 8, 3)
    assert large.train.images.shape[1:] == (20, 20, 3)
    assert large.hash == small.hash, "the hash is of the images, not of their size in training"


def test_the_cache_can_be_cleared_and_downloads_stay(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    loaded(tmp_path / "set", tmp_path / "cache")
    (tmp_path / "cache" / "downloads").mkdir()
    data.clear(tmp_path / "cache")
    assert cached(tmp_path / "cache") == {}
    assert (tmp_path / "cache" / "downloads").exists()
    data.clear(tmp_path / "cache")


def test_cached_pixels_cannot_be_changed_by_mistake(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    found = data.load(str(tmp_path / "set"), size=8, cache=tmp_path / "cache", say=print)
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
        re.search(r"the cache .*pixels cannot be written \(.+\): decoding anew", line)
        for line in said
    )


def spoil(root: Path) -> list[Path]:
    """Makes three images of a folder unreadable, each in its own way."""
    files = sorted(root.rglob("*.png"))
    files[3].write_bytes(b"")
    files[50].write_bytes(b"# a text that was saved as an image")
    files[70].write_bytes(files[70].read_bytes()[:-30])
    return [files[3], files[50], files[70]]


def test_unreadable_images_are_listed_with_their_reason(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    bad = spoil(tmp_path / "set")
    with pytest.raises(DataError, match="set: 3 images cannot be read") as error:
        loaded(tmp_path / "set", tmp_path / "cache")
    lines = str(error.value).splitlines()
    assert lines[1] == f"  {bad[0]}: the file is empty: an image is needed"
    assert lines[2].startswith(f"  {bad[1]}: not an image that can be read (35 bytes)")
    assert lines[3].startswith(f"  {bad[2]}: the PNG image is truncated or corrupt")
    assert "--skip-unreadable" in lines[-1]


def test_unreadable_images_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    bad = spoil(tmp_path / "set")
    found, said = loaded(tmp_path / "set", tmp_path / "cache", skip_unreadable=True)
    assert len(found.train) + len(found.test) == 97
    (line,) = [line for line in said if "unreadable" in line]
    assert line.startswith("set: 3 unreadable images are left out:")
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
    assert str(error.value).count("\n  /") == data.LISTED
    assert "and 10 more" in str(error.value)


def test_from_the_cache_unreadable_images_are_named_where_they_are_now(tmp_path: Path) -> None:
    write_folder(tmp_path / "old", TRAIN)
    spoil(tmp_path / "old")
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


def test_a_class_that_is_too_small_to_split_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN[:14], ("many", "few"))
    with pytest.raises(DataError, match=r"class 'few' has 4 images; without a test/ .*at least 5"):
        loaded(tmp_path / "set", tmp_path / "cache")


@pytest.mark.parametrize(("n_train", "n_test", "split"), [(1, 2, "train"), (2, 0, "test")])
def test_too_few_images_of_a_class_are_named_with_their_split(
    tmp_path: Path, n_train: int, n_test: int, split: str
) -> None:
    names = ("many", "few")
    write_parquet(tmp_path / "set" / "train.parquet", TRAIN[: 10 + n_train], names)
    write_parquet(tmp_path / "set" / "test.parquet", [*TEST[:2], *TEST[2 : 2 + n_test]], names)
    least = {"train": 2, "test": 1}[split]
    count = {"train": n_train, "test": n_test}[split]
    message = rf"too few {split} images of 'few' \({count}\): at least {least} a class are needed"
    with pytest.raises(DataError, match=message):
        loaded(tmp_path / "set", tmp_path / "cache")


def test_the_same_image_in_train_and_test_is_counted_and_reported(tmp_path: Path) -> None:
    write_folder(tmp_path / "set" / "train", TRAIN)
    # The same pixels in another file format are the same image.
    write_folder(tmp_path / "set" / "test", [*TEST, *TRAIN[:2]])
    with Image.open(sorted((tmp_path / "set" / "train" / "5").iterdir())[0]) as image:
        image.save(tmp_path / "set" / "test" / "5" / "copy.bmp")
    found, said = loaded(tmp_path / "set", tmp_path / "cache")
    assert "set: 3 train images are also in test (same pixels)" in said
    assert len(found.test) == len(TEST) + 3


def test_without_duplicates_nothing_is_reported(tmp_path: Path) -> None:
    write_folder(tmp_path / "set" / "train", TRAIN)
    write_folder(tmp_path / "set" / "test", TEST)
    assert loaded(tmp_path / "set", tmp_path / "cache")[1] == []


@pytest.mark.parametrize("size", [7, 1025])
def test_a_size_outside_the_range_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(DataError, match=f"--image-size {size}: allowed are 8 to 1024"):
        data.load("digits", size=size, cache=tmp_path, say=print)


def test_images_of_any_mode_and_format_make_one_data_set(tmp_path: Path) -> None:
    modes = ("RGB", "L", "P", "RGBA", "LA", "1", "I;16", "CMYK")
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i, mode in enumerate(modes):
            extension = "jpg" if mode == "CMYK" else "png"
            pixels = Image.new("L", (20 + i, 30), 40 * i + label)
            image = Image.new(mode, pixels.size) if mode == "I;16" else pixels.convert(mode)
            if mode == "I;16":
                image.paste(1000 * i + 500 * label, (0, 0, *pixels.size))
            image.save(tmp_path / "set" / name / f"{i}.{extension}")
        for extension in ("webp", "bmp", "gif"):
            Image.new("RGB", (9, 9), (label, 9, len(extension))).save(
                tmp_path / "set" / name / f"other.{extension}"
            )
    found, _ = loaded(tmp_path / "set", tmp_path / "cache")
    assert len(found.train) + len(found.test) == 22


def test_the_default_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.default_cache().is_relative_to(tmp_path)
    assert data.default_cache().name == "labelcurve"


def test_taking_rows_keeps_image_label_and_file_together(digits: Data) -> None:
    rows = np.array([5, 3, 3, 900])
    taken = digits.train.take(rows).take(np.array([3, 0]))
    assert len(taken) == 2
    assert taken.labels.tolist() == digits.train.labels[[900, 5]].tolist()
    assert np.array_equal(taken.images[0], digits.train.images[900])
    assert taken.read(1) == digits.train.read(5)


@pytest.mark.skipif(not CIFAR10.is_dir(), reason=f"data set not here: {CIFAR10}")
def test_cifar10_in_parquet_is_the_official_split(tmp_path: Path) -> None:
    found = data.load(str(CIFAR10), cache=tmp_path, say=print)
    assert found.name == "cifar10"
    assert found.size == 32
    assert (len(found.train), len(found.test)) == (50_000, 10_000)
    assert found.class_names == (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    assert np.bincount(found.train.labels).tolist() == [5000] * 10
    assert np.bincount(found.test.labels).tolist() == [1000] * 10
    assert np.array_equal(found.train.images[7], preprocess.prepare(found.train.read(7), 32))
    tenth = fractions.subset(found.train, found.class_names, 0.1, 0)
    assert (len(tenth.train), len(tenth.val), len(tenth.val_pool)) == (4500, 500, 5000)
    files = cached(tmp_path)
    again = data.load(str(CIFAR10), cache=tmp_path, say=print)
    assert again.hash == found.hash
    assert cached(tmp_path) == files
    assert list(tmp_path.iterdir()) == [tmp_path / "pixels"]


def test_class_names_that_occur_twice_are_refused(tmp_path: Path) -> None:
    rows = [(label % 2, digit_rows()[label][1]) for label in range(20)]
    write_parquet(tmp_path / "train.parquet", rows, ("cat", "cat"))
    with pytest.raises(DataError, match="class names must differ, these occur twice: cat"):
        data.load(str(tmp_path), cache=tmp_path / "cache", say=lambda _: None)
