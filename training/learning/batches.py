"""Endless batches, from images resident on the device or read ahead by a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from labelcurve.bundle import machine
from labelcurve.training.data.decoded.stored import Images, Stored, by_blocks
from labelcurve.training.data.source import Index
from labelcurve.training.learning import augment
from labelcurve.training.runtime import distributed
from labelcurve.training.runtime.device import Device, to_device
from labelcurve.training.runtime.memory import EnoughMemory

RESIDENT_SHARE = 0.3
"""Share of the device's free memory; images beyond that are copied there batch by batch."""

WINDOW_BYTES = 128 * 2**20
"""Size of the images that are shuffled together and read ahead."""

WINDOW_SHARE = 0.1
"""Share of the memory for images that a window takes at most."""


class Batches:
    """Each image once an epoch, with a reflected border.

    They are on the device where they fit. Else a thread reads the next window of them (decoding
    them in more threads, where they are not decoded) while the device works on this one.

    A batch depends on nothing but its number, so that a run can be resumed anywhere.

    Args:
        images: uint8 [N, H, W, 3].
        batch: images of a batch, in all processes; all images where there are fewer.
        border: in pixels, on each side.
        seed: of the order; the number of the epoch is added.
        device: of the batches.
        say: receives a message if they do not fit.
        rank: of this process, of several that share each batch.
        world: number of processes.
    """

    def __init__(
        self,
        images: Images,
        batch: int,
        border: int,
        seed: Sequence[int],
        device: Device,
        say: Callable[[str], None] = print,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._images, self._border, self._device = images, border, device
        self._seed = tuple(seed)
        self.batch = min(batch, len(images))
        """Images of a batch, those of all processes."""
        self.steps = len(images) // self.batch
        """Steps of an epoch."""
        self._part = distributed.part(self.batch, (rank, world))
        self._own = self._part.stop - self._part.start
        self.waited = 0.0
        """Seconds spent waiting for images."""
        self.window = max(1, _window(images) // (self._own * 3 * images.shape[1] ** 2)) * self._own
        """Images that are read at a time."""
        self._gpu = torch.cuda.current_device() if device.device.type == "cuda" else None
        self._order: tuple[int, Index] | None = None
        self._resident_order: tuple[int, Tensor] | None = None
        self._now: tuple[int, _Window] | None = None
        self._next: tuple[int, _Reading] | None = None
        self.resident = self._whole(say)
        """All images on the device, uint8 [N, 3, P, P], where they fit."""

    def _whole(self, say: Callable[[str], None]) -> Tensor | None:
        images = self._images
        if isinstance(images, Stored):
            return None
        side = images.shape[1] + 2 * self._border
        size, room = len(images) * 3 * side * side, _room(self._device)
        if size > room:
            say(
                f"{len(images):,} images are {size / 2**30:.1f} GiB on the device, more than the "
                f"{room / 2**30:.1f} GiB that are kept for them: moved there batch by batch"
            )
            return None
        resident = None
        with EnoughMemory() as enough:
            resident = augment.pad(to_device(images, self._device), self._border)
        if not enough:
            say(f"{len(images):,} images do not fit into the GPU's memory: moved batch by batch")
        return resident

    def draw(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """A batch of the run.

        Args:
            number: of the batch, from 0.

        Returns:
            Rows of this process, int64 [B]; images, uint8 [M, 3, P, P]; and the index of each row
            among them, int64 [B].
        """
        epoch, place = divmod(number, self.steps)
        first = place * self._own
        if self.resident is not None:
            index = self._on_device(epoch)[first : first + self._own]
            return index, self.resident, index
        found = self._read(epoch, first // self.window)
        part = slice(first % self.window, first % self.window + self._own)
        on = self._device.device
        pixels = found.pixels[part].to(on, non_blocking=True).permute(0, 3, 1, 2)
        padded = augment.pad(pixels, self._border)
        return found.rows[part], padded, torch.arange(self._own, device=on)

    def _on_device(self, epoch: int) -> Tensor:
        """`_rows` on the device, copied once an epoch: a copy at each step would wait for it."""
        if self._resident_order is None or self._resident_order[0] != epoch:
            rows = torch.from_numpy(self._rows(epoch)).long().to(self._device.device)
            self._resident_order = epoch, rows
        return self._resident_order[1]

    def _rows(self, epoch: int) -> Index:
        """The rows of this process in an epoch, in order, int64 [steps * own]."""
        if self._order is None or self._order[0] != epoch:
            self._order = None  # its memory is free for the next one
            self._order = epoch, self._shuffled(np.random.default_rng([*self._seed, epoch]))
        return self._order[1]

    def _shuffled(self, random: np.random.Generator) -> Index:
        if not isinstance(self._images, Stored):
            whole = random.permutation(len(self._images))[: self.steps * self.batch]
            return whole.reshape(self.steps, self.batch)[:, self._part].ravel()
        # Each process has separate blocks and mixes the rows of a few of them at a time.
        order = by_blocks(self._images, random)
        order = order[self.steps * self._part.start : self.steps * self._part.stop]
        for first in range(0, len(order), self.window):
            random.shuffle(order[first : first + self.window])
        return order

    def _read(self, epoch: int, window: int) -> _Window:
        per_epoch = -(-self.steps * self._own // self.window)
        number = epoch * per_epoch + window
        if self._now is None or self._now[0] != number:
            since = time.monotonic()
            ahead = self._next
            if ahead is None or ahead[0] != number:
                if ahead is not None:  # one reads at a time
                    ahead[1].wait()
                ahead = number, _Reading(lambda: self._load(*divmod(number, per_epoch)))
            self._now = None  # its memory is free while the next one is waited for
            self._now = number, ahead[1].result()
            after = number + 1
            self._next = after, _Reading(lambda: self._load(*divmod(after, per_epoch)))
            self.waited += time.monotonic() - since
        return self._now[1]

    def _load(self, epoch: int, window: int) -> _Window:
        first = window * self.window
        rows = self._rows(epoch)[first : first + self.window]
        images = self._images
        if isinstance(images, Stored):
            pixels = images[rows]
        else:
            # In the order of the file, which is faster where it is read from a disk.
            order = rows.argsort()
            pixels = np.empty((len(rows), *images.shape[1:]), np.uint8)
            pixels[order] = images[rows[order]]
        tensor, places = torch.from_numpy(pixels), torch.from_numpy(rows).long()
        if self._gpu is not None:
            with torch.cuda.device(self._gpu):
                tensor = tensor.pin_memory()  # copied while the device computes
                places = places.to(self._device.device)
        return _Window(places, tensor)


@dataclass(frozen=True)
class _Window:
    rows: Tensor
    """int64 [N], on the device."""
    pixels: Tensor
    """uint8 [N, H, W, 3]"""


class _Reading:
    """A window that a thread reads. It does not keep an interrupted process alive."""

    def __init__(self, load: Callable[[], _Window]) -> None:
        self._load = load
        self._found: _Window | BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found = self._load()
        except BaseException as error:
            self._found = error

    def wait(self) -> None:
        """Waits until it is read or has failed."""
        self._thread.join()

    def result(self) -> _Window:
        """The window; raises the error of the thread."""
        self.wait()
        assert self._found is not None
        if isinstance(self._found, BaseException):
            raise self._found
        return self._found


def reading(images: Images, *parts: int) -> str:
    """Describes how batches will be read, on which the order of the images depends.

    Args:
        images: of which the parts are taken.
        parts: images of each.
    """
    outside = [n for n in parts if isinstance(images, Stored) and not images.keeps(n)]
    if not isinstance(images, Stored) or not outside:
        return "images in memory"
    return (
        f"{sum(outside):,} images from {images.place}, shuffled {_window(images) / 1e6:,.6g} MB at "
        "a time"
    )


def _window(images: Images) -> int:
    """Bytes of images that are read at a time."""
    if isinstance(images, Stored):
        return min(WINDOW_BYTES, int(WINDOW_SHARE * images.memory))
    return WINDOW_BYTES


def _room(device: Device) -> float:
    if device.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return RESIDENT_SHARE * free
    return RESIDENT_SHARE * machine.memory()


class Crops:
    """Endless batches of random crops, each image once an epoch."""

    def __init__(
        self,
        images: Images,
        batch: int,
        crop: int,
        seed: int,
        device: Device,
        say: Callable[[str], None],
    ) -> None:
        self._size = images.shape[1]
        self._batches = Batches(
            images,
            batch,
            round(crop * self._size / 32),
            [seed],
            device,
            say,
            rank=distributed.rank(),
            world=distributed.size(),
        )
        self.batch, self.steps = self._batches.batch, self._batches.steps

    def draw(self, number: int, flip: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Batch `number` of the run, or this process' part of it.

        Returns:
            Its rows, int64 [B], and crops of them, uint8 [B, 3, H, W].
        """
        rows, padded, index = self._batches.draw(number)
        return rows, augment.crop_flip(padded, index, self._size, flip, generator)
