from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelcurve.bundle.errors import DataError
from labelcurve.training.data import source


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


def test_a_path_is_shown_on_one_line_whatever_its_characters() -> None:
    path = Path("pets") / "a\nb\x1b[31m" / b"\xe9.png".decode(errors="surrogateescape")
    assert source.shown(path) == r"pets/a\x0ab\x1b[31m/\xe9.png"


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


@pytest.mark.parametrize(
    ("first", "second", "starts"),
    [(None, None, None), ([0, 2], None, [0, 2, 3, 4]), (None, [0], [0, 1, 2, 3])],
)
def test_joined_rows_are_those_of_both_one_after_the_other(
    first: list[int] | None, second: list[int] | None, starts: list[int] | None
) -> None:
    def rows(name: bytes, n: int, groups: list[int] | None) -> source.Rows:
        return source.Rows(
            np.full(n, n),
            lambda i: name * i,
            lambda i: f"{name!r} {i}",
            None if groups is None else np.array(groups),
        )

    both = source.joined(rows(b"a", 3, first), rows(b"b", 2, second))
    assert both.labels.tolist() == [3, 3, 3, 2, 2]
    assert [both.read(i) for i in range(5)] == [b"", b"a", b"aa", b"", b"b"]
    assert both.where(4) == "b'b' 1"
    assert (None if both.starts is None else both.starts.tolist()) == starts
