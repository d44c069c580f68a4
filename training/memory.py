"""What to do where the device's memory is smaller than the data or a batch."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bundle.errors import DeviceError
from training import augment
from training.device import Device, to_device

RESIDENT_BYTES = 2 * 2**30
"""Images beyond so much stay in their file and are read batch by batch, on the CPU."""

RESIDENT_SHARE = 0.3
"""Of the GPU's free memory, likewise."""


class Pixels:
    """Images with a reflected border: on the device where they fit, else gathered by the batch.

    Args:
        images: uint8 [N, H, W, 3].
        border: in pixels, on each side.
        device: of the batches.
        say: is told where they stay outside.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        border: int,
        device: Device,
        say: Callable[[str], None] = print,
    ) -> None:
        self._images, self._border, self._device = images, border, device
        self._resident: Tensor | None = None
        n, side = len(images), images.shape[1] + 2 * border
        size, room = n * 3 * side * side, _room(device)
        if size > room:
            say(
                f"{n:,} images are {size / 2**30:.1f} GiB, more than the {room / 2**30:.1f} GiB "
                "that are kept for them in memory: read batch by batch"
            )
            return
        with EnoughMemory() as enough:
            self._resident = augment.pad(to_device(images, device), border)
        if not enough:
            say(f"{n:,} images do not fit into the GPU's memory: moved there batch by batch")

    def padded(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images, uint8 [M, 3, P, P], and the index of each row among them, int64 [B]."""
        if self._resident is not None:
            return self._resident, torch.from_numpy(rows).to(self._resident.device)
        # In the order of the file, which is faster where it is read from a disk.
        order = rows.argsort()
        gathered = np.empty((len(rows), *self._images.shape[1:]), np.uint8)
        gathered[order] = self._images[rows[order]]
        batch = augment.pad(to_device(gathered, self._device), self._border)
        return batch, torch.arange(len(rows), device=batch.device)

    def __len__(self) -> int:
        return len(self._images)


class EnoughMemory:
    """`with EnoughMemory() as enough`: false afterwards where the memory of the device ran out."""

    def __init__(self) -> None:
        self._enough = True

    def __bool__(self) -> bool:
        return self._enough

    def __enter__(self) -> EnoughMemory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._enough = not isinstance(error, torch.OutOfMemoryError)
        return not self._enough


def more_parts(parts: int, batch: int, device: Device, say: Callable[[str], None]) -> int:
    """Twice as many parts of a batch that did not fit, announced.

    Raises:
        DeviceError: a part of two images did not fit.
    """
    if device.device.type == "cuda":
        torch.cuda.empty_cache()
    if batch // (2 * parts) < 2:
        raise DeviceError(
            f"the memory of {device.choice.value} is too small for a training step on "
            f"{-(-batch // parts)} images: a smaller --image-size needs less, and --device cpu "
            "takes the machine's memory"
        )
    parts *= 2
    say(
        f"out of GPU memory: from now on each batch of {batch} images goes through in {parts} "
        f"parts, with the gradients of all of them in one update (batch norm sees a part)"
    )
    return parts


def _room(device: Device) -> float:
    if device.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return RESIDENT_SHARE * free
    return RESIDENT_BYTES
