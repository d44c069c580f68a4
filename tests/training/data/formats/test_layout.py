from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest

from labelcurve.bundle.errors import DataError
from labelcurve.training.data.formats.layout import Arranged, arrange
from labelcurve.training.data.formats.split_names import Layout
from labelcurve.training.data.formats.tree import scan


def make(root: Path, *folders: str, n: int = 2) -> Path:
    """Folders with empty image files; their content is read later."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(n):
            (root / folder / f"{number}.png").touch()
    return root


def arranged(root: Path, layout: Layout = "auto") -> tuple[Arranged, list[str]]:
    said: list[str] = []
    return arrange(scan(root, said.append), layout, said.append), said


def counts(found: Arranged) -> dict[str, dict[str, int]]:
    return {
        split: {name: len(images) for name, images in classes.items()}
        for split, classes in found.splits.items()
    }


def gone(found: Arranged, root: Path) -> list[tuple[str, str]]:
    return [(str(Path(item.path).relative_to(root)), item.reason) for item in found.left_out]


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Training", "Testing", "test"),
        ("Train", "Test", "test"),
        ("seg_train", "seg_test", "test"),
        ("training_set", "test_set", "test"),
        ("training", "validation", "validation"),
        ("train", "valid", "validation"),
        ("TRAIN_IMAGES", "val-images", "validation"),
    ],
)
def test_folders_of_splits_are_known_in_any_usual_spelling(
    tmp_path: Path, train: str, other: str, split: str
) -> None:
    make(tmp_path, f"{train}/cat", f"{train}/dog", f"{other}/cat", f"{other}/dog")
    found, said = arranged(tmp_path)
    assert counts(found) == {"train": {"cat": 2, "dog": 2}, split: {"cat": 2, "dog": 2}}
    assert (said, found.left_out) == ([], [])


def test_a_folder_of_a_split_without_an_image_is_said_and_is_no_split(tmp_path: Path) -> None:
    make(tmp_path, "train/cat", "train/dog")
    (tmp_path / "test").mkdir()
    found, said = arranged(tmp_path)
    assert counts(found) == {"train": {"cat": 2, "dog": 2}}
    assert said == [f"{tmp_path / 'test'} holds no image"]


def test_a_folder_in_a_folder_of_the_same_split_is_opened(tmp_path: Path) -> None:
    make(tmp_path, "seg_train/seg_train/ice", "seg_train/seg_train/sea", "seg_pred/seg_pred", n=1)
    make(tmp_path, "seg_test/seg_test/ice", "seg_test/seg_test/sea", n=1)
    found, said = arranged(tmp_path)
    assert counts(found) == {"train": {"ice": 1, "sea": 1}, "test": {"ice": 1, "sea": 1}}
    assert gone(found, tmp_path) == [
        ("seg_pred/seg_pred/0.png", "images in folders next to the splits")
    ]
    pool = tmp_path / "seg_pred"
    assert said == [
        f"{pool}: 1 image not used, since the folder's name is not that of a split (--unlabelled "
        f"{pool} learns from them without labels)"
    ]


@pytest.mark.parametrize(
    ("folders", "beside"),
    [
        ("A_train A_test B_train B_test", "next to them B_test, B_train hold images in folders"),
        ("train_clean test_clean train_noisy", "next to them train_noisy holds images in folders"),
        ("train test train_aug", "next to them train_aug holds images in folders"),
        ("Training Validierung Test", "next to them Validierung holds images in folders"),
        ("train val backup", "next to them backup holds images in folders"),
    ],
)
def test_a_further_folder_of_classes_beside_the_splits_is_refused(
    tmp_path: Path, folders: str, beside: str
) -> None:
    make(tmp_path, *(f"{name}/{inner}" for name in folders.split() for inner in ("cat", "dog")))
    with pytest.raises(DataError, match=beside):
        arranged(tmp_path)


def test_a_further_folder_is_left_out_and_named_where_the_layout_is_given(tmp_path: Path) -> None:
    make(tmp_path, *(f"{name}/{x}" for name in ("train", "test", "train_aug") for x in "ab"), n=1)
    found, said = arranged(tmp_path, "split/class")
    assert counts(found) == {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}}
    assert [path for path, _ in gone(found, tmp_path)] == ["train_aug/a/0.png", "train_aug/b/0.png"]
    assert [line.partition(" not used")[0] for line in said] == [f"{tmp_path}/train_aug: 2 images"]


def test_of_two_data_sets_no_layout_chooses_one(tmp_path: Path) -> None:
    make(tmp_path, *(f"{name}/a" for name in ("A_train", "A_test", "B_train", "B_test")))
    with pytest.raises(DataError, match="A_train, B_train are each the training split of a data"):
        arranged(tmp_path, "split/class")


def test_a_prefix_of_some_of_the_splits_is_enough(tmp_path: Path) -> None:
    make(tmp_path, *(f"{name}/a" for name in ("fruits_Train", "fruits_Val", "TEST")))
    found, _ = arranged(tmp_path)
    assert counts(found) == {s: {"a": 2} for s in ("train", "validation", "test")}


@pytest.mark.parametrize("inner", ["images", "cat"])
def test_a_folder_around_the_images_of_a_class_is_opened(tmp_path: Path, inner: str) -> None:
    make(tmp_path, f"train/cat/{inner}", "train/dog/images", "val/images", n=1)
    found, said = arranged(tmp_path)
    assert counts(found) == {"train": {"cat": 1, "dog": 1}}
    assert gone(found, tmp_path) == [("val/images/0.png", "images in val/ without a class folder")]
    assert [line.partition(" (")[0] for line in said] == [
        f"{tmp_path}/val/images: 1 image not used, since they are in no class folder"
    ]


def test_folders_within_a_class_folder_are_named(tmp_path: Path) -> None:
    make(tmp_path, "cat", "dog/poodle", "dog/pug")
    found, said = arranged(tmp_path)
    assert counts(found) == {"train": {"cat": 2, "dog": 4}}
    assert said == [
        f"{tmp_path}: images in folders within a class folder are of that class (dog/poodle, "
        "dog/pug)"
    ]


def test_the_layout_that_is_advised_is_the_one_that_reads_the_folders(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/a", "train/dog/b")
    with pytest.raises(
        DataError, match=r"say --layout split/class\. If the inner ones are \(a, b\), "
    ):
        arranged(tmp_path)
    found, _ = arranged(tmp_path, "split/class")
    assert counts(found) == {"train": {"cat": 2, "dog": 2}}


def test_folders_in_a_pool_of_unlabelled_images_are_named(tmp_path: Path) -> None:
    make(tmp_path, "cat", "dog", "unlabelled/cat", "unlabelled/dog")
    found, said = arranged(tmp_path)
    assert len(found.unlabelled) == 4
    assert said == [
        f"{tmp_path}/unlabelled: 4 images without labels, whatever the folders in it are called "
        "(cat, dog)"
    ]


def test_splits_within_each_class_are_known(tmp_path: Path) -> None:
    make(tmp_path, "cat/train", "dog/train", "cat/Test", "dog/Test/deeper")
    found, _ = arranged(tmp_path)
    assert counts(found) == {"train": {"cat": 2, "dog": 2}, "test": {"cat": 2, "dog": 2}}
    assert found.splits["test"]["dog"][0] == tmp_path / "dog" / "Test" / "deeper" / "0.png"


def test_images_without_a_class_are_left_out_one_by_one(tmp_path: Path) -> None:
    make(tmp_path, "train/cat", "train/dog", "test", ".", n=1)
    (tmp_path / "train" / "loose.png").touch()
    found, _ = arranged(tmp_path)
    assert counts(found) == {"train": {"cat": 1, "dog": 1}}
    assert gone(found, tmp_path) == [
        ("0.png", "images outside the class folders"),
        ("test/0.png", "images in test/ without a class folder"),
        ("train/loose.png", "images outside the class folders"),
    ]


def test_unlabelled_folders_are_no_class_at_any_place(tmp_path: Path) -> None:
    make(tmp_path, "train/cat", "train/dog", "train/unlabelled", "Unlabeled/deep", n=1)
    found, _ = arranged(tmp_path)
    assert counts(found) == {"train": {"cat": 1, "dog": 1}}
    assert [str(path.relative_to(tmp_path)) for path in found.unlabelled] == [
        "Unlabeled/deep/0.png",
        "train/unlabelled/0.png",
    ]


@pytest.mark.parametrize(("one", "others"), [("train", "bus car"), ("valid", "invalid odd")])
def test_a_class_with_the_name_of_a_split_is_one_beside_others_and_that_is_said(
    tmp_path: Path, one: str, others: str
) -> None:
    make(tmp_path, one, *others.split())
    found, said = arranged(tmp_path)
    assert counts(found) == {"train": dict.fromkeys(sorted([one, *others.split()]), 2)}
    assert said == [
        f"{tmp_path}: {one} is read as a class like {', '.join(others.split())}, since its images "
        "lie directly in it"
    ]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("bus", "car", "train/steam"), "train holds class folders, and next to it: bus, car"),
        (("train", "test"), "test, train are splits by their names, and the images are not in"),
        (("train", "test", "cat"), "test, train are splits by their names, and the images"),
        (("test/cat", "val/cat"), "test, val are splits by their names, and none is train"),
        (("a/x", "a/y", "b/x"), "none of a, b holds an image directly; they are in folders below"),
        (("train/a/x", "train/b/x"), "train: none of a, b holds an image directly"),
        (("images/cat", "images/dog", "annotations"), "holds images/ next to annotations/"),
        (("train/images", "train/labels"), "train holds images/ next to labels/, the layout of"),
        (("cat/JPEGImages", "cat/masks", "dog"), "cat holds JPEGImages/ next to masks/"),
        (("cat/train", "cat/test", "dog"), "cat hold folders that are splits by their names"),
        (("train1/a", "train2/a", "test/a"), "train1, train2 are the same split by their names"),
        (
            ("cat", "dog", "test/cat"),
            "test is a split by its name, and none is train. If these are",
        ),
        (
            ("train/cat", "holdout/cat"),
            "next to it: holdout. If these are classes, say --layout cl",
        ),
        (
            ("2021/train/oak", "2022/train/oak"),
            "each of 2021, 2022 holds splits with folders of th",
        ),
        (("images_001", "images_002"), "images_001, images_002 are parts of one folder by their"),
        (("ham_part_1", "ham_part_2", "masks"), "ham_part_1, ham_part_2 are parts of one folder"),
        (
            ("a/images", "train/set 1", "train/set 2"),
            "train holds class folders, and next to it: a",
        ),
        (("train/set 1", "train/set 2"), "say --layout split/class"),
        (("images_1/images", "images_2/images"), "images_1, images_2 are parts of one folder by"),
        (("part_a", "part_b"), "part_a, part_b are parts of one folder by their names"),
        (("pics/train", "pics (2)/train"), "pics, pics (2) are parts of one folder by their names"),
        (("Images/cat", "Images/dog", "Annotation"), "If the folders in Images/ are classes (cat,"),
        (("Images/cat", "Annotation"), "image. If they are classes, say --layout class. "),
        (("Images", "Annotation"), "image. If they are classes, say --layout class. "),
        (("wrapper/deeper/cat", "wrapper/deeper/dog"), "wrapper/deeper holds cat, dog: perhaps"),
    ],
)
def test_what_can_be_read_in_more_than_one_way_is_refused(
    tmp_path: Path, folders: tuple[str, ...], message: str
) -> None:
    make(tmp_path, *folders)
    with pytest.raises(DataError, match=re.escape(message)):
        arranged(tmp_path)


def test_names_with_numbers_are_classes_where_no_word_means_a_part(tmp_path: Path) -> None:
    make(
        tmp_path, "0", "1", "c2", "c3", "grade 4", "grade 5", "image", "part", "apple_1", "apple_2"
    )
    assert len(arranged(tmp_path)[0].splits["train"]) == 10
    make(tmp_path, "part_2")
    assert len(arranged(tmp_path, "class")[0].splits["train"]) == 11


def test_a_single_image_beside_folders_does_not_make_a_class_of_them(tmp_path: Path) -> None:
    make(tmp_path, "2021/oak", "2021/elm", "2022/oak", n=3)
    make(tmp_path, "2021", "2022", n=1)
    with pytest.raises(DataError, match="most images of 2021, 2022 are in folders below"):
        arranged(tmp_path)
    assert counts(arranged(tmp_path, "class")[0]) == {"train": {"2021": 7, "2022": 4}}
    make(tmp_path, "2022", n=3)
    assert counts(arranged(tmp_path)[0]) == {"train": {"2021": 7, "2022": 6}}


def test_the_only_folder_with_images_is_named_and_those_without(tmp_path: Path) -> None:
    make(tmp_path, "objects/cup", "objects/dog")
    (tmp_path / "notes").mkdir()
    with pytest.raises(DataError) as error:
        arranged(tmp_path)
    assert "'objects': at least two are needed (notes without any image)" in str(error.value)
    assert "objects holds cup, dog: perhaps you mean that with --data" in str(error.value)


@pytest.mark.parametrize(
    ("folders", "layout", "splits"),
    [
        (("bus", "train/steam"), "class", {"train": {"bus": 2, "train": 2}}),
        (("train", "test"), "class", {"train": {"test": 2, "train": 2}}),
        (("a/x", "a/y", "b/x"), "class", {"train": {"a": 4, "b": 2}}),
        (("bus", "train/a/x", "train/b"), "split/class", {"train": {"a": 2, "b": 2}}),
        (("a/train", "b/train", "b/other"), "class/split", {"train": {"a": 2, "b": 2}}),
    ],
)
def test_a_layout_that_is_named_is_taken(
    tmp_path: Path, folders: tuple[str, ...], layout: Layout, splits: dict[str, dict[str, int]]
) -> None:
    make(tmp_path, *folders)
    found, _ = arranged(tmp_path, layout)
    assert counts(found) == splits
    everything = sum(
        len(images) for classes in found.splits.values() for images in classes.values()
    )
    assert everything + len(found.left_out) == 2 * len(folders), "each image is somewhere"


@pytest.mark.parametrize("layout", ["split/class", "class/split"])
def test_a_layout_without_a_training_split_is_refused(tmp_path: Path, layout: Layout) -> None:
    make(tmp_path, "cat", "dog")
    with pytest.raises(DataError, match=r"no folder is the training split|holds a folder train/"):
        arranged(tmp_path, layout)


def test_a_class_within_a_split_that_has_the_name_of_one_is_named(tmp_path: Path) -> None:
    make(tmp_path, "train/cat", "train/test")
    found, said = arranged(tmp_path)
    assert counts(found) == {"train": {"cat": 2, "test": 2}}
    assert said == [f"{tmp_path}/train: test is read as a class, since it lies in a split"]


def test_names_that_differ_in_unicode_or_blanks_only_are_one_class(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    make(tmp_path, composed, apart, "dog", "dog ")
    found, said = arranged(tmp_path)
    assert counts(found) == {"train": {composed: 4, "dog": 4}}
    assert said == [
        f"{tmp_path}: {apart!r} (U+0301) and {composed!r} (U+00E9) are read as one class, "
        f"{composed!r}",
        f"{tmp_path}: 'dog' (-) and 'dog ' (U+0020) are read as one class, 'dog'",
    ]


def test_names_that_differ_in_case_only_are_two_classes_and_that_is_said(tmp_path: Path) -> None:
    make(tmp_path, "Cat", "cat")
    found, said = arranged(tmp_path)
    assert counts(found) == {"train": {"Cat": 2, "cat": 2}}
    assert said == [f"{tmp_path}: the classes Cat, cat differ in case only"]


def test_images_and_classes_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/10.png", "b/9.png", "b/a/5.png", "a/2.png", "a/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, _ = arranged(tmp_path)
    assert list(found.splits["train"]) == ["a", "b"]
    assert [str(p.relative_to(tmp_path)) for f in found.splits["train"].values() for p in f] == [
        *("a/1.png", "a/2.png", "b/10.png", "b/9.png", "b/a/5.png")
    ]
