from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.errors import DataError
from training import source


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("pets", "pets"),
        ("My Pets (2024)", "My-Pets-2024"),
        ("_.hidden", "hidden"),
        ("a_b.c-d", "a_b.c-d"),
        ("動物", "images"),
        ("a" * 250, "a" * 200),
    ],
)
def test_a_data_set_is_named_by_its_folder_in_characters_that_a_bundle_may_have(
    tmp_path: Path, folder: str, name: str
) -> None:
    assert source.name_of(tmp_path / folder) == name


def test_a_relative_folder_is_named_by_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "birds").mkdir()
    monkeypatch.chdir(tmp_path / "birds")
    assert source.name_of(Path()) == "birds"


def test_a_file_is_hashed_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    assert source.hash_file(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*missing\.png: No such file"):
        source.hash_file(tmp_path / "missing.png")


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_pixels_survive_the_way_through_png(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert np.array_equal(np.asarray(Image.open(BytesIO(source.png(pixels)))), pixels)
