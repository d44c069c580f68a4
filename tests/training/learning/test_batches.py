from __future__ import annotations

import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from labelcurve.training.data.decoded import stored
from labelcurve.training.data.decoded.stored import Images, Stored, in_file
from labelcurve.training.data.source import Index
from labelcurve.training.learning import augment
from labelcurve.training.learning import batches as stream
from labelcurve.training.learning.batches import Batches
from labelcurve.training.runtime.device import FP32_CPU

N, SIZE, BATCH = 300, 8, 16
PIXELS = np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), np.uint8)
BYTES = 3 * SIZE * SIZE


def silent(_: str) -> None:
    return


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stored:
    """The images in a file, in blocks of 10; windows of 64 rows."""
    monkeypatch.setattr(stored, "BLOCK_BYTES", 10 * BYTES)
    np.save(tmp_path / "images.npy", PIXELS)
    return in_file(tmp_path / "images.npy", int(64 * BYTES / stream.WINDOW_SHARE) + 10)


def drawn(batches: Batches, numbers: range) -> tuple[list[NDArray[np.int64]], list[torch.Tensor]]:
    rows, pixels = [], []
    for number in numbers:
        found, padded, index = batches.draw(number)
        rows.append(found.numpy())
        pixels.append(padded[index])
    return rows, pixels


@pytest.fixture(params=["memory", "batch by batch", "file"])
def images(
    request: pytest.FixtureRequest, outside: Stored, monkeypatch: pytest.MonkeyPatch
) -> Images:
    if request.param == "file":
        return outside
    if request.param == "batch by batch":
        monkeypatch.setattr(stream, "RESIDENT_SHARE", 0.0)
    return PIXELS


@pytest.mark.parametrize("border", [0, 2])
def test_a_batch_is_its_rows_with_a_reflected_border(images: Images, border: int) -> None:
    batches = Batches(images, BATCH, border, [0], FP32_CPU, silent)
    assert (batches.batch, batches.steps) == (16, 18)
    rows, pixels = drawn(batches, range(2 * batches.steps))
    for of, found in zip(rows, pixels, strict=True):
        known = augment.pad(torch.from_numpy(PIXELS[of]).permute(0, 3, 1, 2), border)
        assert torch.equal(found, known)
    for epoch in (rows[:18], rows[18:]):
        assert len(set(np.concatenate(epoch).tolist())) == 18 * 16, "each once"
    assert not np.array_equal(rows[0], rows[18])


def test_a_batch_depends_on_its_number_alone(images: Images) -> None:
    """A run resumes in the middle of an epoch; one that is short of memory draws again."""
    whole, _ = drawn(Batches(images, BATCH, 0, [3], FP32_CPU, silent), range(40))
    other = Batches(images, BATCH, 0, [3], FP32_CPU, silent)
    for number in (22, 22, 23, 7, 39, 0, 17, 18):
        assert np.array_equal(drawn(other, range(number, number + 1))[0][0], whole[number])
    differs, _ = drawn(Batches(images, BATCH, 0, [4], FP32_CPU, silent), range(40))
    assert not np.array_equal(whole[0], differs[0])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_an_epoch_without_overlap(images: Images, world: int) -> None:
    several = [
        Batches(images, BATCH, 0, [0], FP32_CPU, silent, rank=rank, world=world)
        for rank in range(world)
    ]
    assert {(batches.batch, batches.steps) for batches in several} == {(16, 18)}
    rows = [drawn(batches, range(18))[0] for batches in several]
    assert [sum(len(of[number]) for of in rows) for number in range(18)] == [16] * 18
    everything = np.concatenate([np.concatenate(of) for of in rows])
    assert len(set(everything.tolist())) == 18 * 16
    if isinstance(images, Stored):
        blocks = [set(images.blocks(np.concatenate(of)).tolist()) for of in rows]
        assert max(len(a & b) for a, b in pairwise(blocks)) <= 1, (
            "separate blocks, but for one that is cut"
        )
    else:
        whole, _ = drawn(Batches(images, BATCH, 0, [0], FP32_CPU, silent), range(18))
        shared = [np.concatenate([of[number] for of in rows]) for number in range(18)]
        assert np.array_equal(shared, whole), "the same batches as of one process"


def test_a_window_touches_few_blocks_and_mixes_their_rows(outside: Stored) -> None:
    batches = Batches(outside, BATCH, 0, [0], FP32_CPU, silent)
    rows = np.concatenate(drawn(batches, range(16))[0])
    windows = outside.blocks(rows).reshape(-1, batches.window)
    assert max(len(set(window.tolist())) for window in windows) <= 8
    assert (np.diff(windows) != 0).mean() > 0.5


def test_fewer_images_than_a_batch(images: Images) -> None:
    few = images.take(np.arange(10)) if isinstance(images, Stored) else images[:10]
    batches = Batches(few, BATCH, 0, [0], FP32_CPU, silent)
    rows, _ = drawn(batches, range(2))
    assert [sorted(found.tolist()) for found in rows] == [list(range(10))] * 2


def test_at_most_two_windows_are_in_memory(outside: Stored) -> None:
    """One at work and one that is read: whatever the number of images."""
    lock, most = threading.Lock(), 0
    reads: list[int] = []

    def fetch(rows: Index) -> NDArray[np.uint8]:
        with lock:
            reads.append(len(rows))
        return outside.fetch(rows)

    counted = replace(outside, fetch=fetch)
    batches = Batches(counted, BATCH, 0, [0], FP32_CPU, silent)
    for number in range(3 * batches.steps):
        batches.draw(number)
        done = number * BATCH
        read = sum(reads)
        most = max(most, read - done)
    assert batches.window == 64
    assert max(reads) == 64
    assert most <= 2 * 64, "rows that were read and not yet drawn"


def test_what_goes_wrong_while_reading_ahead_is_raised_where_it_is_needed(outside: Stored) -> None:
    def fetch(rows: Index) -> NDArray[np.uint8]:
        if len(reads) == 1:
            raise OSError("the disk went away")
        reads.append(1)
        return outside.fetch(rows)

    reads: list[int] = []
    broken = replace(outside, fetch=fetch)
    batches = Batches(broken, BATCH, 0, [0], FP32_CPU, silent)
    drawn(batches, range(4))
    with pytest.raises(OSError, match="went away"):
        batches.draw(4)


@pytest.mark.parametrize(("crop", "border"), [(0, 0), (4, 1), (6, 2), (8, 2)])
def test_the_border_of_crops_is_given_for_images_of_32_pixels(crop: int, border: int) -> None:
    crops = stream.Crops(PIXELS, BATCH, crop, 3, FP32_CPU, silent)
    resident = crops._batches.resident
    assert resident is not None
    assert resident.shape == (N, 3, SIZE + 2 * border, SIZE + 2 * border)
    rows, pixels = crops.draw(20, False, torch.Generator().manual_seed(0))
    same, _, _ = Batches(PIXELS, BATCH, border, [3], FP32_CPU, silent).draw(20)
    assert torch.equal(rows, same)
    assert pixels.shape == (BATCH, 3, SIZE, SIZE)
    assert (crops.batch, crops.steps) == (16, 18)


def test_images_that_do_not_fit_on_the_device_are_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "RESIDENT_SHARE", 0.0)
    said: list[str] = []
    assert Batches(PIXELS, BATCH, 0, [0], FP32_CPU, said.append).resident is None
    assert len(said) == 1
    assert said[0].startswith("300 images are 0.0 GiB on the device, more than the 0.0 GiB")


def test_how_images_are_read_is_said_where_their_order_depends_on_it(outside: Stored) -> None:
    kept = int(stored.TAKEN_SHARE * outside.memory) // BYTES
    assert stream.reading(PIXELS, N, N) == stream.reading(outside, kept) == "images in memory"
    said = stream.reading(outside, kept, kept + 1, N)
    assert said == f"{kept + 1 + N} images from the cache, shuffled 0.012289 MB at a time"
