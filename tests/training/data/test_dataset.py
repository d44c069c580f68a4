from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelcurve.bundle import preprocess
from labelcurve.bundle.errors import DataError
from labelcurve.training.data import dataset, fractions
from labelcurve.training.data.dataset import Data, Split
from labelcurve.training.data.decoded import digests
from labelcurve.training.data.decoded.digests import of_image
from labelcurve.training.data.sources import Selection
from tests.training.sets import Row, digit_rows, write_folder, write_parquet

ROOT = Path(__file__).parents[3]
CIFAR10 = ROOT.parent / "shared" / "datasets" / "cifar10"

TRAIN = tuple(row for i, row in enumerate(digit_rows(12)) if i % 12 < 10)
TEST = tuple(row for i, row in enumerate(digit_rows(12)) if i % 12 >= 10)


def loaded(
    path: Path,
    cache: Path,
    *,
    labelled: bool = True,
    skip_unreadable: bool = False,
    unlabelled: Path | None = None,
) -> tuple[Data, list[str]]:
    said: list[str] = []
    found = dataset.load(
        Selection(str(path), labelled=labelled, unlabelled=unlabelled),
        size=8,
        cache=cache,
        skip_unreadable=skip_unreadable,
        say=said.append,
    )
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


def test_the_hash_of_the_pixels_ignores_order_format_and_labels(tmp_path: Path) -> None:
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
    assert set(found.train.labels.tolist()) == {-1}
    assert said == []
    files = {file for _, file in TRAIN[:30]}
    assert {found.train.read(i) for i in range(30)} == files
    assert np.array_equal(found.train.images[7], preprocess.prepare(found.train.read(7), 8))


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


def test_the_first_fifth_of_each_class_in_the_order_of_the_digests_is_test(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    whole, _ = loaded(tmp_path / "set", tmp_path / "cache", labelled=False)
    found, _ = loaded(tmp_path / "set", tmp_path / "cache")
    label_of = {file: label for label, file in TRAIN}
    order = [whole.train.read(i) for i in range(100)]
    known = [of_image(np.asarray(preprocess.decode(file))) for file in order]
    assert known == sorted(known)
    for label in range(10):
        files = [file for file in order if label_of[file] == label]
        test = [found.test.read(int(i)) for i in np.flatnonzero(found.test.labels == label)]
        train = [found.train.read(int(i)) for i in np.flatnonzero(found.train.labels == label)]
        assert (test, train) == (files[:2], files[2:])


def test_images_without_labels_are_training_rows_beside_the_labelled_ones(tmp_path: Path) -> None:
    write_folder(tmp_path / "set" / "train", TRAIN[:50])
    write_folder(tmp_path / "set" / "test", [row for row in TEST if row[0] < 5])
    (tmp_path / "set" / "unlabelled").mkdir()
    for number, (_, file) in enumerate(TRAIN[50:60]):
        (tmp_path / "set" / "unlabelled" / f"{number}.png").write_bytes(file)
    write_folder(tmp_path / "more", TRAIN[60:80])
    plain = loaded(tmp_path / "set" / "train", tmp_path / "cache")[0]
    found, said = loaded(tmp_path / "set", tmp_path / "cache", unlabelled=tmp_path / "more")
    assert (len(found.train), found.train.n_labelled, len(found.test)) == (80, 50, 10)
    files = {found.train.read(int(i)) for i in np.flatnonzero(found.train.labels < 0)}
    assert files == {file for _, file in TRAIN[50:80]}
    assert said == []
    without, _ = loaded(tmp_path / "set", tmp_path / "cache")
    assert without.hash == found.hash, "the labelled images are the same"
    assert without.pixels_hash != found.pixels_hash
    assert found.labelled().pixels_hash == without.labelled().pixels_hash
    assert len(found.labelled().train) == 50
    assert plain.hash != found.hash
    subsets = [fractions.subset(d.train, d.class_names, 0.5, 3) for d in (found, without)]
    assert subsets[0].hash == subsets[1].hash
    assert (found.train.labels[subsets[0].train] >= 0).all()
    assert (found.train.labels[subsets[0].val_pool] >= 0).all()


def test_the_hash_leaves_images_without_labels_out_in_whatever_parts_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "set", TRAIN[:50])
    write_folder(tmp_path / "more", TRAIN[50:])
    plain, _ = loaded(tmp_path / "set", tmp_path / "cache")
    monkeypatch.setattr(digests, "AT_ONCE", 7)
    found, _ = loaded(tmp_path / "set", tmp_path / "cache", unlabelled=tmp_path / "more")
    assert (found.hash, len(found.train) - len(plain.train)) == (plain.hash, 50)


def test_unlabelled_images_that_are_labelled_or_in_test_are_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path / "set" / "train", TRAIN[:50])
    write_folder(tmp_path / "set" / "test", [row for row in TEST if row[0] < 5])
    write_folder(tmp_path / "all", [*TRAIN[:3], *TEST[:2], *TRAIN[90:]], ["x"] * 10)
    found, said = loaded(tmp_path / "set", tmp_path / "cache", unlabelled=tmp_path / "all")
    assert (len(found.train), found.train.n_labelled) == (60, 50)
    assert found.left_out == {"unlabelled images also labelled or in test": 5}
    (line,) = said
    before, _, file = line.partition("; listed in ")
    assert before == "set: left out: 5 unlabelled images also labelled or in test"
    listed = Path(file).read_text().splitlines()
    assert sorted(line.split("\t")[2] for line in listed) == [
        str(tmp_path / "all" / "x" / f"{number:05d}.png") for number in range(5)
    ]


def test_what_is_left_out_is_counted_in_one_line_and_listed_in_a_file(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    (tmp_path / "set" / "loose.png").write_bytes(TEST[0][1])
    (tmp_path / "set" / "0" / "a.heic").write_bytes(b"")
    (tmp_path / "set" / "1" / "b.HEIC").write_bytes(b"")
    found, said = loaded(tmp_path / "set", tmp_path / "cache")
    heic = ".heic (a format that is not read: convert to JPEG or PNG)"
    assert found.left_out == {heic: 2, "images outside the class folders": 1}
    file = next((tmp_path / "cache" / "left-out").iterdir())
    assert said[-1] == (
        f"set: left out: 2 {heic} ({tmp_path}/set/0/a.heic, {tmp_path}/set/1/b.HEIC), 1 image "
        f"outside the class folders ({tmp_path}/set/loose.png); listed in {file}"
    )
    assert file.read_text().splitlines() == [
        f"{heic}\t1\t{tmp_path}/set/0/a.heic",
        f"{heic}\t1\t{tmp_path}/set/1/b.HEIC",
        f"images outside the class folders\t1\t{tmp_path}/set/loose.png",
    ]


def test_images_under_several_classes_are_counted_as_images_with_their_paths(
    tmp_path: Path,
) -> None:
    same = TRAIN[0][1]
    write_folder(tmp_path / "set", [*TRAIN, (0, same), (3, same), (3, same)])
    _, said = loaded(tmp_path / "set", tmp_path / "cache")
    lines = said[0].splitlines()
    assert lines[0] == "set: 4 train images with the same pixels as others under another class:"
    assert sorted(lines[1:]) == [
        f"  {tmp_path}/set/0/00000.png (0)",
        f"  {tmp_path}/set/0/00100.png (0)",
        f"  {tmp_path}/set/3/00101.png (3)",
        f"  {tmp_path}/set/3/00102.png (3)",
    ]


def test_an_image_of_another_class_in_test_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "set" / "train", TRAIN)
    write_folder(tmp_path / "set" / "test", [*TEST, (7, TRAIN[0][1]), (1, TRAIN[10][1])])
    _, said = loaded(tmp_path / "set", tmp_path / "cache")
    assert said == [
        "set: 2 train images also in test (same pixels)",
        "set: 1 of them have another class there:\n"
        f"  {tmp_path}/set/train/0/00000.png (0) and {tmp_path}/set/test/7/00020.png (7)",
    ]


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


def test_a_class_of_fewer_than_five_has_no_test_images_and_that_is_said(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", [*TRAIN[:10], *TRAIN[10:14]], ("many", "few"))
    found, said = loaded(tmp_path / "set", tmp_path / "cache")
    assert np.bincount(found.train.labels).tolist() == [4, 8]
    assert np.bincount(found.test.labels).tolist() == [0, 2]
    assert said == [
        "set: too few images to have some in test: few (4)",
        "set: no test split, so a stratified fifth is test: 2 of 14 images",
    ]


def test_two_images_of_a_class_are_enough(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", [*TRAIN[:2], *TRAIN[10:12]], ("a", "b"))
    found, said = loaded(tmp_path / "set", tmp_path / "cache")
    assert (np.bincount(found.train.labels).tolist(), len(found.test)) == ([2, 2], 0)
    assert said == [
        "set: too few images to have some in test: a (2), b (2)",
        "set: no test split, and too few images to hold one out: nothing is tested",
    ]
    subset = fractions.subset(found.train, found.class_names, 1.0, 0)
    assert (len(subset.train), len(subset.val)) == (2, 2)


def test_one_image_of_a_class_is_not_enough(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", [*TRAIN[:5], TRAIN[10]], ("many", "one"))
    with pytest.raises(DataError, match=r"too few train images of 'one' \(1\): at least 2 a class"):
        loaded(tmp_path / "set", tmp_path / "cache")


def test_copies_of_an_image_within_a_class_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "set" / "train", [*TRAIN, TRAIN[0], TRAIN[0], TRAIN[30]])
    write_folder(tmp_path / "set" / "test", TEST)
    found, said = loaded(tmp_path / "set", tmp_path / "cache")
    assert len(found.train) == len(TRAIN) + 3
    (line,) = said
    assert line.startswith("set: 3 train images with the same pixels as another of the class: ")
    assert line.endswith(" and others. Copies of a validation image do not train")
    assert line.count(str(tmp_path)) == 2


def test_a_class_that_a_given_test_split_lacks_is_named(tmp_path: Path) -> None:
    names = ("many", "some", "few")
    write_parquet(tmp_path / "set" / "train.parquet", TRAIN[:22], names)
    write_parquet(tmp_path / "set" / "test.parquet", TEST[:4], names)
    found, said = loaded(tmp_path / "set", tmp_path / "cache")
    assert sorted(found.test.labels.tolist()) == [0, 0, 1, 1]
    assert said[-1] == (
        f"{tmp_path / 'set'}: the test split has no image of 'few': metrics on it cover "
        "2 of 3 classes"
    )


def test_the_same_image_in_train_and_test_is_counted_and_reported(tmp_path: Path) -> None:
    write_folder(tmp_path / "set" / "train", TRAIN)
    # The same pixels in another file format are the same image.
    write_folder(tmp_path / "set" / "test", [*TEST, *TRAIN[:2]])
    with Image.open(sorted((tmp_path / "set" / "train" / "5").iterdir())[0]) as image:
        image.save(tmp_path / "set" / "test" / "5" / "copy.bmp")
    found, said = loaded(tmp_path / "set", tmp_path / "cache")
    assert "set: 3 train images also in test (same pixels)" in said
    assert len(found.test) == len(TEST) + 3


def test_without_duplicates_nothing_is_reported(tmp_path: Path) -> None:
    write_folder(tmp_path / "set" / "train", TRAIN)
    write_folder(tmp_path / "set" / "test", TEST)
    assert loaded(tmp_path / "set", tmp_path / "cache")[1] == []


@pytest.mark.parametrize("size", [7, 1025])
def test_a_size_outside_the_range_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(DataError, match=f"--image-size {size}: allowed are 8 to 1024"):
        dataset.load("digits", size=size, cache=tmp_path, say=print)


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
    assert dataset.default_cache().is_relative_to(tmp_path)
    assert dataset.default_cache().name == "labelcurve"


def test_taking_rows_keeps_image_label_and_file_together(digits: Data) -> None:
    rows = np.array([5, 3, 3, 900])
    taken = digits.train.take(rows).take(np.array([3, 0]))
    assert len(taken) == 2
    assert taken.labels.tolist() == digits.train.labels[[900, 5]].tolist()
    assert np.array_equal(taken.images[0], digits.train.images[900])
    assert taken.read(1) == digits.train.read(5)


@pytest.mark.skipif(not CIFAR10.is_dir(), reason=f"data set not here: {CIFAR10}")
def test_cifar10_in_parquet_is_the_official_split(tmp_path: Path) -> None:
    found = dataset.load(str(CIFAR10), cache=tmp_path, say=print)
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
    again = dataset.load(str(CIFAR10), cache=tmp_path, say=print)
    assert again.hash == found.hash
    assert cached(tmp_path) == files
    assert {folder.name for folder in tmp_path.iterdir()} <= {"pixels", "left-out"}


def test_class_names_that_occur_twice_are_refused(tmp_path: Path) -> None:
    rows = [(label % 2, digit_rows()[label][1]) for label in range(20)]
    write_parquet(tmp_path / "train.parquet", rows, ("cat", "cat"))
    with pytest.raises(DataError, match="class names must differ, these occur twice: cat"):
        dataset.load(str(tmp_path), cache=tmp_path / "cache", say=lambda _: None)
