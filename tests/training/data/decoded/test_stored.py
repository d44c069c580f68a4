from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from labelcurve.bundle import preprocess
from labelcurve.bundle.errors import DataError, UnreadableImage
from labelcurve.training.data.decoded import stored
from labelcurve.training.data.decoded.stored import (
    Stored,
    by_blocks,
    encoded,
    in_file,
    in_order,
    joined,
    take,
)
from labelcurve.training.data.source import Rows, png

N, SIZE = 500, 8
PIXELS = np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), np.uint8)
ROWS = Rows(
    labels=np.zeros(N, np.int64),
    read=lambda i: png(PIXELS[i]),
    where=lambda i: f"row {i}",
    starts=np.arange(0, N, 40),
)
ORDER = np.random.default_rng(1).permutation(N)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "images.npy"
    np.save(path, PIXELS)
    return path


@pytest.fixture(params=["file", "encoded"])
def images(
    request: pytest.FixtureRequest, file: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Stored, NDArray[np.uint8]]:
    """Stored images with the array that they must be like, in blocks of 40."""
    monkeypatch.setattr(stored, "BLOCK_BYTES", 40 * 3 * SIZE * SIZE)
    if request.param == "file":
        return in_file(file, 1), PIXELS
    return encoded(ROWS, ORDER, SIZE, 1), PIXELS[ORDER]


@pytest.mark.parametrize(
    "wanted",
    [
        slice(None),
        slice(10, 95),
        slice(0, None, 7),
        np.array([499, 0, 41, 41, 39, 40]),
        np.array([], np.int64),
        np.arange(N) % 3 == 0,
        7,
        -1,
    ],
    ids=str,
)
def test_rows_are_those_of_an_array(images: tuple[Stored, NDArray[np.uint8]], wanted: Any) -> None:
    found, known = images
    assert (found.shape, found.nbytes, found.dtype) == (known.shape, known.nbytes, known.dtype)
    assert np.array_equal(found[wanted], known[wanted])


def test_rows_taken_of_rows_taken(images: tuple[Stored, NDArray[np.uint8]]) -> None:
    found, known = images
    rows = np.random.default_rng(2).permutation(N)[:300]
    part = found.take(rows)
    assert isinstance(part, Stored)
    again = part.take(np.arange(0, 300, 3))
    assert np.array_equal(again, known[rows][::3])
    assert all(np.array_equal(a, b) for a, b in zip(part, known[rows], strict=True))


@pytest.mark.parametrize("where", ["first", "second", "both", "neither"])
def test_images_joined_are_those_of_both(
    images: tuple[Stored, NDArray[np.uint8]], where: str
) -> None:
    found, known = images
    early, late = np.arange(0, 200), np.arange(250, N)
    parts = [found.take(early), found.take(late)]
    if where != "both":
        parts = [
            part if place == where else part[:]
            for part, place in zip(parts, ("first", "second"), strict=True)
        ]
    both = joined(*parts)
    expected = np.concatenate([known[early], known[late]])
    assert isinstance(both, Stored) is (where != "neither")
    assert np.array_equal(both[:], expected)
    rows = np.random.default_rng(3).permutation(len(expected))[:120]
    assert np.array_equal(both[rows], expected[rows])
    again = take(both, rows)
    assert np.array_equal(again[5:50], expected[rows][5:50])
    if isinstance(both, Stored):
        order = by_blocks(both, np.random.default_rng(0))
        assert sorted(order.tolist()) == list(range(len(expected)))
        blocks = both.blocks(both.within(np.arange(len(expected))))
        assert set(blocks[:200]).isdisjoint(blocks[200:])


def test_few_rows_are_taken_into_memory(file: Path) -> None:
    found = in_file(file, 40 * 3 * SIZE * SIZE)
    assert isinstance(found.take(np.arange(10)), np.ndarray)
    assert isinstance(found.take(np.arange(11)), Stored)


@pytest.mark.parametrize("damage", ["cut", "grown", "kind"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "images.npy"
    np.save(path, PIXELS[:, :, :, :1] if damage == "kind" else PIXELS)
    if damage != "kind":
        os.truncate(path, path.stat().st_size + (1 if damage == "grown" else -1))
    with pytest.raises((ValueError, EOFError), match=r"images\.npy"):
        in_file(path, 1)


def test_a_file_that_is_cut_off_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    np.save(path, PIXELS)
    found = in_file(path, 1)
    os.truncate(path, 5_000)
    with pytest.raises(DataError, match=r"images\.npy was cut off while it was read"):
        found[N - 10 :]
    path.unlink()
    with pytest.raises(
        DataError, match=r"images\.npy cannot be read any more .*all must see --cache"
    ):
        found[:3]


def test_an_image_that_goes_meanwhile_is_named() -> None:
    def read(i: int) -> bytes:
        raise UnreadableImage("gone")

    rows = Rows(np.zeros(3, np.int64), read, lambda i: f"row {i}")
    found = encoded(rows, np.array([2, 0, 1]), SIZE, 1)
    with pytest.raises(DataError, match="row 2 changed while it was in use: gone"):
        found[0]


def test_rows_in_the_order_of_blocks(
    images: tuple[Stored, NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = images[0].take(np.arange(0, N, 2))
    assert isinstance(part, Stored)
    monkeypatch.setattr(stored, "AT_ONCE", 70)
    order = by_blocks(part, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(len(part)))
    blocks = part.blocks(part.within(order))
    within = zip(pairwise(blocks.tolist()), pairwise(order.tolist()), strict=True)
    assert all(a < b for (one, other), (a, b) in within if one == other), "in their order"
    assert (np.diff(blocks) != 0).sum() == len(set(blocks.tolist())) - 1, "each is read once"
    assert np.array_equal(order, by_blocks(part, np.random.default_rng(0)))
    assert not np.array_equal(order, by_blocks(part, np.random.default_rng(1)))


def test_another_process_reads_the_same(images: tuple[Stored, NDArray[np.uint8]]) -> None:
    found = pickle.loads(pickle.dumps(images[0])) if images[1] is PIXELS else images[0]
    assert np.array_equal(found[3:7], images[1][3:7])


def test_work_comes_back_in_its_order_and_few_items_are_ahead() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def work(i: int) -> int:
        with lock:
            begun.append(i)
        time.sleep(0.001 * (i % 3))
        return i

    seen = 0
    for found in in_order(work, range(60), ahead=1):
        assert found == seen
        seen += 1
        time.sleep(0.002)
        with lock:
            assert len(begun) <= seen + 2 * (os.cpu_count() or 1) + 2
    assert seen == 60


def test_what_goes_wrong_in_a_thread_is_raised() -> None:
    def work(i: int) -> int:
        return 1 // (3 - i)

    found = in_order(work, range(1000))
    with pytest.raises(ZeroDivisionError):
        list(found)


def test_what_is_not_wanted_any_more_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    over = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *arguments: Any, **keywords: Any) -> None:
            over.set()
            super().shutdown(*arguments, **keywords)

    def work(i: int) -> int:
        begun.append(i)
        if i:
            assert over.wait(30)
        return i

    monkeypatch.setattr(stored, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(stored, "cores", lambda: 1)
    found = in_order(work, range(1000))
    assert isinstance(found, Generator)
    assert next(found) == 0
    found.close()
    assert begun in ([0], [0, 1]), "one was being worked on, four waited"


def test_the_preprocessing_is_that_of_the_service(images: tuple[Stored, NDArray[np.uint8]]) -> None:
    assert np.array_equal(images[1][3], preprocess.prepare(png(images[1][3]), SIZE))
