from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labelcurve.bundle.errors import DataError, UnreadableImage
from labelcurve.training.data.formats.folder import folder, unlabelled
from tests.training.sets import digit_rows, write_folder

ROOT = Path(__file__).parents[4]
TWO = ("cat", "dog")


def rows(*labels: int) -> list[tuple[int, bytes]]:
    return [(label, digit_rows()[i][1]) for i, label in enumerate(labels)]


def opened(path: Path) -> tuple[dict[str, list[int]], list[str]]:
    said: list[str] = []
    source = folder(path, said.append)
    return {split: found.labels.tolist() for split, found in source.splits.items()}, said


def test_class_folders_alone_are_a_train_split(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", rows(0, 1, 1), TWO)
    source = folder(tmp_path / "pets", print)
    assert source.name == "pets"
    assert source.class_names == ("cat", "dog")
    assert list(source.splits) == ["train"]
    assert source.splits["train"].labels.tolist() == [0, 1, 1]
    assert source.splits["train"].read(2) == digit_rows()[2][1]
    assert source.splits["train"].where(2) == str(tmp_path / "pets" / "dog" / "00002.png")


def test_validation_images_beside_test_join_the_training_images(tmp_path: Path) -> None:
    for split in ("train", "test", "val"):
        write_folder(tmp_path / split, rows(0, 1), TWO)
    splits, said = opened(tmp_path)
    assert splits == {"train": [0, 0, 1, 1], "test": [0, 1]}
    assert said == [
        f"{tmp_path}: the validation split (2 images) joins the training images, of which a tenth "
        "is held out for validation"
    ]


def test_validation_images_without_test_are_the_test_images(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", rows(0, 1, 1), TWO)
    write_folder(tmp_path / "val", rows(0, 1), TWO)
    splits, said = opened(tmp_path)
    assert splits == {"train": [0, 1, 1], "test": [0, 1]}
    assert said == [f"{tmp_path}: no test split, so the validation split is test: 2 images"]


def test_a_class_that_only_the_validation_split_has_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", rows(0, 1), TWO)
    write_folder(tmp_path / "test", rows(0, 1), TWO)
    write_folder(tmp_path / "val", rows(0), ("emu",))
    with pytest.raises(DataError, match="validation split has classes that train has not: emu"):
        opened(tmp_path)
    shutil.rmtree(tmp_path / "test")  # so that it is test
    with pytest.raises(
        DataError,
        match=r"different classes: only in train/ \['cat', 'dog'\], only in test/ \['emu'\]",
    ):
        opened(tmp_path)


def test_images_in_unlabelled_beside_the_classes_have_no_label(tmp_path: Path) -> None:
    write_folder(tmp_path, rows(0, 1), TWO)
    write_folder(tmp_path, rows(0, 0, 0), ("Unlabeled",))
    source = folder(tmp_path, print)
    assert source.class_names == TWO
    assert source.splits["train"].labels.tolist() == [0, 1, -1, -1, -1]
    assert source.splits["train"].where(4) == str(tmp_path / "Unlabeled" / "00002.png")


@pytest.mark.parametrize("extension", [".png", ".JPG", ".jpeg", ".webp", ".BMP", ".gif"])
def test_images_are_found_by_extension_in_any_case(tmp_path: Path, extension: str) -> None:
    write_folder(tmp_path, rows(0, 1), TWO)
    (tmp_path / "cat" / f"other{extension}").write_bytes(b"content is looked at later")
    assert opened(tmp_path)[0] == {"train": [0, 0, 1]}


def test_images_in_folders_within_a_class_belong_to_the_class(tmp_path: Path) -> None:
    write_folder(tmp_path / "cat", rows(0, 1), ("tabby", "black"))
    write_folder(tmp_path, rows(1), TWO)
    assert opened(tmp_path)[0] == {"train": [0, 0, 1]}


def test_what_is_no_visible_image_is_left_out_with_its_reason(tmp_path: Path) -> None:
    write_folder(tmp_path, rows(0, 1), TWO)
    write_folder(tmp_path, rows(0), (".ipynb_checkpoints",))
    write_folder(tmp_path, rows(0), ("__MACOSX",))
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"")
    (tmp_path / "cat" / "notes.txt").write_text("fluffy")
    (tmp_path / "dog" / "scan.tiff").write_bytes(b"")
    source = folder(tmp_path, print)
    assert source.splits["train"].labels.tolist() == [0, 1]
    assert {(Path(item.path).name, item.reason, item.count) for item in source.left_out} == {
        (".ipynb_checkpoints", "images in hidden folders", 1),
        ("__MACOSX", "files in system folders", 1),
        (".DS_Store", "hidden files", 1),
        ("notes.txt", ".txt", 1),
        ("scan.tiff", ".tiff (a format that is not read: convert to JPEG or PNG)", 1),
    }


def test_an_empty_folder_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="holds no class folder: it should hold one folder per class"
    ):
        opened(tmp_path)


def test_images_without_class_folders_say_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(digit_rows()[0][1])
    with pytest.raises(DataError, match="holds no class folder"):
        opened(tmp_path)


def test_a_class_folder_without_images_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, rows(0, 1), TWO)
    (tmp_path / "emu").mkdir()
    (tmp_path / "emu" / "readme.txt").write_text("soon")
    message = (
        r"emu: the class folder holds no image \(.*\), but 1 \.txt\. Put images in, or move it"
    )
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    write_folder(tmp_path, rows(0, 0), TWO)
    with pytest.raises(DataError, match=r"one class folder, 'cat': at least two are needed"):
        opened(tmp_path)


def test_splits_of_different_classes_are_told_apart_by_name(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", rows(0, 1), ("cat", "dog"))
    write_folder(tmp_path / "test", rows(0, 1), ("cat", "hound"))
    message = "only in train/ ['dog'], only in test/ ['hound']. Give both the same class folders"
    with pytest.raises(DataError, match=re.escape(message)):
        opened(tmp_path)


def test_a_class_that_the_test_split_lacks_is_allowed(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", rows(0, 1), TWO)
    write_folder(tmp_path / "test", rows(0), TWO)
    assert opened(tmp_path)[0] == {"train": [0, 1], "test": [0]}


def test_a_link_to_another_class_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, rows(0, 1), TWO)
    (tmp_path / "kitten").symlink_to("cat")
    message = f"{tmp_path}/kitten and {tmp_path}/cat are the same folder, by a link, and would be"
    with pytest.raises(DataError, match=re.escape(message)):
        opened(tmp_path)


def test_what_a_link_within_a_class_repeats_is_read_once(tmp_path: Path) -> None:
    write_folder(tmp_path, rows(0, 1), TWO)
    write_folder(tmp_path / "cat", rows(0, 0), ("tabby",))
    (tmp_path / "cat" / "tiger").symlink_to("tabby")
    source = folder(tmp_path, print)
    assert source.splits["train"].labels.tolist() == [0, 0, 0, 1]
    assert [(str(Path(i.path).relative_to(tmp_path)), i.reason) for i in source.left_out] == [
        (f"cat/tiger/0000{n}.png", "images read already, through a link to their folder")
        for n in range(2)
    ]


def test_a_table_of_labels_beside_class_folders_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, rows(0, 1), TWO)
    (tmp_path / "metadata.csv").write_text("file_name,label\ncat/00000.png,0\n")
    (tmp_path / "notes.csv").write_text("name,age\ncat,3\n")
    splits, said = opened(tmp_path)
    assert splits == {"train": [0, 1]}
    assert said == [
        f"{tmp_path}/metadata.csv is a table of 1 label and is not read: the class folders hold "
        f"the labels. --data {tmp_path}/metadata.csv reads it instead"
    ]


def test_a_table_that_contradicts_the_class_folders_is_refused_until_one_is_chosen(
    tmp_path: Path,
) -> None:
    write_folder(tmp_path, rows(0, 1), TWO)
    (tmp_path / "a.csv").write_text("path,label\n./cat/00000.png,dog\ndog/00001.png,dog\n")
    message = (
        "a.csv and the class folders next to it differ in 1 image, such as ./cat/00000.png (dog"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        opened(tmp_path)
    said: list[str] = []
    source = folder(tmp_path, said.append, "class")
    assert source.splits["train"].labels.tolist() == [0, 1]
    assert len(said) == 1


@pytest.mark.parametrize("place", [".", "photos", "train test"])
def test_a_table_beside_images_without_class_folders_is_named_in_the_error(
    tmp_path: Path, place: str
) -> None:
    for folder_ in place.split():
        (tmp_path / folder_).mkdir(exist_ok=True)
        (tmp_path / folder_ / "1.png").write_bytes(digit_rows()[0][1])
    (tmp_path / "labels.csv").write_text("path,label\n1.png,cat\n")
    message = f"There is also {tmp_path}/labels.csv: a table that says the label of each image is"
    with pytest.raises(DataError, match=re.escape(message)):
        opened(tmp_path)


def test_the_fingerprint_is_of_content_classes_and_splits_not_of_the_place(
    tmp_path: Path,
) -> None:
    write_folder(tmp_path / "a", rows(0, 0, 1, 1), TWO)
    before = folder(tmp_path / "a", print).fingerprint
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert folder(tmp_path / "b", print).fingerprint == before
    (tmp_path / "b" / "cat" / "00001.png").rename(tmp_path / "b" / "dog" / "00001.png")
    moved = folder(tmp_path / "b", print).fingerprint
    (tmp_path / "a" / "cat" / "00000.png").write_bytes(digit_rows()[9][1])
    changed = folder(tmp_path / "a", print).fingerprint
    assert len({before, moved, changed}) == 3


def test_moving_a_nested_folder_to_another_class_changes_the_fingerprint(tmp_path: Path) -> None:
    write_folder(tmp_path, rows(0, 1), TWO)
    write_folder(tmp_path / "cat", rows(0), ("set1",))
    before = folder(tmp_path, print).fingerprint
    (tmp_path / "cat" / "set1").rename(tmp_path / "dog" / "set1")
    assert folder(tmp_path, print).fingerprint != before


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, rows(0, 1), TWO)
    source = folder(tmp_path, print)
    (tmp_path / "cat" / "00000.png").unlink()
    with pytest.raises(UnreadableImage, match="the file cannot be read: No such file"):
        source.splits["train"].read(0)


def test_a_link_that_leads_nowhere_is_an_unreadable_image(tmp_path: Path) -> None:
    write_folder(tmp_path, rows(0, 1), TWO)
    (tmp_path / "dog" / "broken.png").symlink_to("nowhere.png")
    source = folder(tmp_path, print)
    assert source.splits["train"].labels.tolist() == [0, 1, 1]
    with pytest.raises(UnreadableImage):
        source.splits["train"].read(2)


def test_a_pipe_among_the_images_is_unreadable_and_does_not_block(tmp_path: Path) -> None:
    write_folder(tmp_path, rows(0, 1), TWO)
    os.mkfifo(tmp_path / "cat" / "00009.png")
    found = folder(tmp_path, print).splits["train"]
    with pytest.raises(UnreadableImage, match="a pipe"):
        found.read(1)


@pytest.mark.parametrize("inner", [".", "dog", "dog/deeper"])
def test_a_folder_that_cannot_be_read_is_named_and_not_left_out(tmp_path: Path, inner: str) -> None:
    write_folder(tmp_path / "pets", rows(0, 1), TWO)
    deeper = tmp_path / "pets" / "dog" / "deeper"
    deeper.mkdir()
    (deeper / "1.png").write_bytes(digit_rows()[3][1])
    closed = Path("pets", inner)
    tmp_path.chmod(0o755)
    (tmp_path / closed).chmod(0)
    # As another user where this one may read everything; what it needs is imported before.
    program = (
        "import os, sys; from pathlib import Path; from labelcurve.bundle.errors import DataError\n"
        "from labelcurve.training.data.sources import Selection, open_source\n"
        "os.geteuid() or os.setuid(65534)\n"
        "try: open_source(Selection('pets'), Path(), print)\n"
        "except DataError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    (tmp_path / closed).chmod(0o755)
    assert f"{closed} cannot be read: Permission denied for user" in done.stdout, done.stderr
    assert "docker: --user" in done.stdout


def test_names_need_not_be_utf8_but_those_of_classes(tmp_path: Path) -> None:
    write_folder(tmp_path, rows(0, 1), TWO)
    image = Path(os.fsdecode(b"caf\xe9.png"))
    (tmp_path / "cat" / image).write_bytes(digit_rows()[3][1])
    found = folder(tmp_path, print).splits["train"]
    assert found.where(1) == rf"{tmp_path}/cat/caf\xe9.png"
    assert found.read(1) == digit_rows()[3][1]
    (tmp_path / "dog").rename(tmp_path / os.fsdecode(b"ch\xefen"))
    with pytest.raises(DataError, match=r"ch\\xefen: the name of this class folder is not UTF-8"):
        folder(tmp_path, print)


def test_without_labels_every_image_below_the_folder_counts_whatever_its_place(
    tmp_path: Path,
) -> None:
    write_folder(tmp_path / "photos", rows(0, 1), TWO)
    write_folder(tmp_path / "photos" / "train" / "deep", rows(0), ("deeper",))
    (tmp_path / "photos" / "b.PNG").write_bytes(digit_rows()[7][1])
    source = unlabelled(tmp_path / "photos", print)
    found = source.splits["train"]
    assert source.name == "photos"
    assert source.class_names == ()
    assert list(source.splits) == ["train"]
    assert found.labels.tolist() == [-1] * 4
    places = [str(Path(found.where(i)).relative_to(tmp_path / "photos")) for i in range(4)]
    assert sorted(places) == [
        "b.PNG",
        "cat/00000.png",
        "dog/00001.png",
        "train/deep/deeper/00000.png",
    ]
    assert found.read(places.index("b.PNG")) == digit_rows()[7][1]


def test_without_labels_hidden_files_are_skipped_and_others_counted(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(digit_rows()[0][1])
    write_folder(tmp_path, rows(0), (".thumbnails",))
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("fluffy")
    source = unlabelled(tmp_path, print)
    assert len(source.splits["train"].labels) == 1
    assert [(Path(item.path).name, item.reason) for item in source.left_out] == [
        (".hidden.png", "hidden files"),
        (".thumbnails", "images in hidden folders"),
        ("notes.txt", ".txt"),
    ]


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_without_labels_a_folder_is_needed(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("no folder")
    message = rf"--data {re.escape(str(tmp_path / kind))}: with --unlabelled it must be a folder"
    with pytest.raises(DataError, match=message):
        unlabelled(tmp_path / kind, print)


def test_without_labels_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("soon")
    with pytest.raises(DataError, match=r"holds no image \(.*\.png"):
        unlabelled(tmp_path, print)


def test_without_labels_the_fingerprint_is_of_content_and_never_that_of_class_folders(
    tmp_path: Path,
) -> None:
    write_folder(tmp_path / "a", rows(0, 1), TWO)
    before = unlabelled(tmp_path / "a", print).fingerprint
    assert before != folder(tmp_path / "a", print).fingerprint
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert unlabelled(tmp_path / "b", print).fingerprint == before
    (tmp_path / "b" / "cat" / "00000.png").write_bytes(digit_rows()[9][1])
    assert unlabelled(tmp_path / "b", print).fingerprint != before


def test_masks_beside_their_images_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path, rows(0, 0, 1, 1), TWO)
    assert opened(tmp_path)[1] == []
    first, second = sorted((tmp_path / "cat").iterdir())
    second.rename(first.with_name(f"{first.stem}_mask_1.png"))
    assert opened(tmp_path) == (
        {"train": [0, 0, 1, 1]},
        [
            f"{tmp_path}: 1 image of the classes named like a mask of another, as "
            f"{tmp_path}/cat/{first.stem}_mask_1.png: if they are not photos, move them out of the "
            "class folders"
        ],
    )
