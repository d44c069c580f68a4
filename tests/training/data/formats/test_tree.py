from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labelcurve.bundle.errors import DataError
from labelcurve.training.data.formats import tree
from labelcurve.training.data.source import LeftOut
from tests.permissions import forbidden
from tests.training.sets import digit_rows

PNG = digit_rows()[0][1]


def names(paths: list[Path], root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in paths]


def scanned(root: Path, out: Path | None = None) -> tuple[tree.Folder, list[str]]:
    said: list[str] = []
    return tree.scan(root, said.append, out), said


def write(root: Path, *files: str, data: bytes = PNG) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(data)


def test_images_are_listed_in_order_whatever_the_file_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "b/2.png", "b/1.jpg", "a/z.PNG", "c.gif", "b/d/0.bmp")
    scandir = os.scandir

    def shuffled(path: Any) -> Iterator[os.DirEntry[str]]:
        return iter(random.Random(3).sample(found := list(scandir(path)), len(found)))

    monkeypatch.setattr(os, "scandir", shuffled)
    found, _ = scanned(tmp_path)
    assert names(found.below(), tmp_path) == ["a/z.PNG", "b/1.jpg", "b/2.png", "b/d/0.bmp", "c.gif"]
    assert list(found.folders) == ["a", "b"]


def test_links_to_folders_are_followed_but_not_back_up(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.png", "elsewhere/2.png")
    (tmp_path / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    (tmp_path / "elsewhere" / "self").symlink_to(".")
    found, _ = scanned(tmp_path)
    assert names(found.below(), tmp_path) == ["cat/1.png", "cat/more/2.png", "elsewhere/2.png"]
    assert found.left_out() == [
        LeftOut(str(tmp_path / place), "links back to a folder above")
        for place in ("cat/loop", "cat/more/self", "elsewhere/self")
    ]


def test_links_that_lead_to_each_other_are_broken(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.png")
    (tmp_path / "cat" / "a").symlink_to("b")
    (tmp_path / "cat" / "b").symlink_to("a")
    found, _ = scanned(tmp_path)
    assert names(found.below(), tmp_path) == ["cat/1.png"]
    assert [i.reason for i in found.left_out()] == ["broken links"] * 2


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (".DS_Store", "hidden files"),
        ("Thumbs.db", "system files"),
        ("x.heic", ".heic (a format that is not read: convert to JPEG or PNG)"),
        ("x.TIF", ".tif (a format that is not read: convert to JPEG or PNG)"),
        ("x.zip", ".zip (an archive: unpack it)"),
        ("x.txt", ".txt"),
        ("x.json", ".json"),
        ("IMG_1", "images without an image's ending (rename them)"),
        ("x.png.download", "images without an image's ending (rename them)"),
    ],
)
def test_each_file_that_is_left_out_has_its_reason(tmp_path: Path, file: str, reason: str) -> None:
    write(tmp_path, file)
    found, _ = scanned(tmp_path)
    assert not found
    assert found.left_out() == [LeftOut(str(tmp_path / file), reason)]


def test_a_file_without_an_ending_that_is_no_image_is_named_too(tmp_path: Path) -> None:
    write(tmp_path, "LICENSE", data=b"all rights")
    (tmp_path / "gone").symlink_to("nowhere")
    found, _ = scanned(tmp_path)
    assert [(Path(i.path).name, i.reason) for i in found.left_out()] == [
        ("LICENSE", "without an ending"),
        ("gone", "broken links"),
    ]


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("@eaDir/0.png", "thumbnails (@eaDir)"),
        ("lost+found", "files in system folders"),
        ("$RECYCLE.BIN", "files in system folders"),
        ("System Volume Information", "files in system folders"),
        ("__MACOSX", "files in system folders"),
        (".thumbs", "images in hidden folders"),
    ],
)
def test_folders_of_the_system_are_left_out_with_the_number_of_their_images(
    tmp_path: Path, folder: str, reason: str
) -> None:
    write(tmp_path, f"{folder}/a/1.png", f"{folder}/2.png", f"{folder}/notes.txt")
    found, _ = scanned(tmp_path)
    top = tmp_path / folder.partition("/")[0]
    assert not found
    assert found.left_out() == [LeftOut(str(top), reason, 2)]


def test_models_are_no_images_whatever_their_folder_is_called(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.png", "dog/1.png")
    write(tmp_path, "models/pets-100/current/manifest.json", "models/pets-100/current/plot.png")
    (tmp_path / "runs" / ".runs").mkdir(parents=True)
    (tmp_path / "new").mkdir()
    write(
        tmp_path, *(f"reports/bench/{name}" for name in ("report.json", "report.html", "p/1.png"))
    )
    found, said = scanned(tmp_path, tmp_path / "new")
    assert list(found.folders) == ["cat", "dog"]
    assert found.left_out() == []
    assert said == [
        f"{tmp_path / name}: holds results of this program, not images: not read"
        for name in ("models", "new", "reports", "runs")
    ]
    inside, said = scanned(tmp_path / "models")
    assert (inside.folders, len(said)) == ({}, 1)


def test_a_folder_that_may_be_listed_and_not_entered_is_named() -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        root.chmod(0o755)
        write(root, "cat/1.png", "cat/deep/2.png")
        message = r"cat/deep cannot be read: Permission denied for user \d+. Change its mode"
        with forbidden(root / "cat", 0o444), pytest.raises(DataError, match=message):
            scanned(root)


def test_a_class_is_not_taken_for_the_folder_of_models(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.png", "models/1.png")
    with pytest.raises(DataError, match="models holds images, and models are written to"):
        scanned(tmp_path, tmp_path / "models")
    assert list(scanned(tmp_path)[0].folders) == ["cat", "models"]


def test_the_summary_counts_by_reason_most_first() -> None:
    left_out = (LeftOut("a", ".txt"), LeftOut("b", "thumbnails (@eaDir)", 5), LeftOut("c", ".txt"))
    assert list(tree.summary(left_out).items()) == [("thumbnails (@eaDir)", 5), (".txt", 2)]
