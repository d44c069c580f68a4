from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from labelcurve.bundle import preprocess
from labelcurve.training.data.decoded import decoding
from labelcurve.training.data.decoded.decoding import decode
from labelcurve.training.data.decoded.digests import sort
from labelcurve.training.data.source import Index, Rows, png

N, SIZE = 200, 8
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 11, 9, 3), np.uint8)
PIXELS[7] = PIXELS[150]
LABELS = np.arange(N, dtype=np.int64)[::-1] % 7
BROKEN = {3: b"", 90: b"no image"}


def read(i: int) -> bytes:
    return BROKEN.get(i, png(PIXELS[i]))


ROWS = Rows(LABELS, read, lambda i: f"row {i}")


def decoded(
    folder: Path, memory: int = 2**30, keep: bool = True
) -> tuple[list[tuple[int, str]], list[str]]:
    said: list[str] = []
    failures = decode(folder, "train", ROWS, SIZE, "mine", said.append, memory=memory, keep=keep)
    return failures, said


def arrays(folder: Path) -> dict[str, NDArray[np.generic]]:
    return {path.stem: np.load(path) for path in folder.iterdir()}


def test_rows_are_in_the_order_of_their_digests(tmp_path: Path) -> None:
    failures, said = decoded(tmp_path)
    assert [row for row, _ in failures] == sorted(BROKEN)
    assert said == []
    found = arrays(tmp_path)
    assert set(found) == {"train-images", "train-digests", "train-rows"}

    def key(row: int) -> tuple[bytes, int]:
        shape = np.array(PIXELS[row].shape, np.int64).tobytes()
        return hashlib.sha256(shape + PIXELS[row].tobytes()).digest(), int(LABELS[row])

    expected = sorted((row for row in range(N) if row not in BROKEN), key=key)
    assert found["train-rows"].tolist() == expected
    assert [d.tobytes() for d in found["train-digests"]] == [key(row)[0] for row in expected]
    for image, row in zip(found["train-images"], expected, strict=True):
        assert np.array_equal(image, preprocess.prepare(read(row), SIZE))


@pytest.mark.parametrize(("memory", "most"), [(1, 8), (40 * 3 * SIZE * SIZE, 20), (2**30, 80)])
def test_little_memory_gives_the_same_files(
    tmp_path: Path, memory: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many files first, each of which is sorted alone: a quarter of the memory on average."""
    sorted_at_once: list[int] = []

    def counting(digests: NDArray[np.void], labels: Index) -> NDArray[np.int64]:
        sorted_at_once.append(len(digests))
        return sort(digests, labels)

    for name in ("much", "little"):
        (tmp_path / name).mkdir()
    decoded(tmp_path / "much")
    monkeypatch.setattr(decoding, "sort", counting)
    decoded(tmp_path / "little", memory)
    files = {path.name: path.read_bytes() for path in (tmp_path / "much").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "little").iterdir()} == files
    assert sum(sorted_at_once) == N - len(BROKEN)
    assert max(sorted_at_once) <= most, "images that were in memory together"


def test_without_the_images_their_order_is_the_same(tmp_path: Path) -> None:
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    decoded(tmp_path / "with")
    assert [row for row, _ in decoded(tmp_path / "without", keep=False)[0]] == sorted(BROKEN)
    kept, left = arrays(tmp_path / "with"), arrays(tmp_path / "without")
    del kept["train-images"]
    assert set(left) == set(kept)
    assert all(np.array_equal(left[name], kept[name]) for name in kept)


def test_progress_is_told_with_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "EVERY", 0.0)
    _, said = decoded(tmp_path)
    assert said[0].startswith("mine: train: decoded 16 of 200 images, ")
    assert said[0].endswith(" s left")
    assert "decoded 192 of 200" in said[-1]


def test_no_image_at_all(tmp_path: Path) -> None:
    rows = Rows(np.zeros(0, np.int64), read, str)
    assert decode(tmp_path, "test", rows, SIZE, "mine", print, memory=1) == []
    assert np.load(tmp_path / "test-images.npy").shape == (0, SIZE, SIZE, 3)
