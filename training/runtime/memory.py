"""Handles batches that exceed the device's memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from labelcurve.bundle import cuda
from labelcurve.bundle.errors import DeviceError
from labelcurve.training.runtime import distributed
from labelcurve.training.runtime.device import Device


class EnoughMemory:
    """`with EnoughMemory() as enough`: false afterwards where the memory of the device ran out."""

    def __init__(self) -> None:
        self._enough = True

    def __bool__(self) -> bool:
        return self._enough

    def __enter__(self) -> EnoughMemory:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        # cuDNN and cuBLAS allocate memory themselves and raise other errors.
        self._enough = not (
            isinstance(error, torch.OutOfMemoryError)
            or (isinstance(error, RuntimeError) and cuda.out_of_memory(error))
        )
        return not self._enough


def more_parts(parts: int, batch: int, device: Device, say: Callable[[str], None]) -> int:
    """Doubles the number of parts of a batch that did not fit, and says so.

    Raises:
        DeviceError: a part of two images did not fit.
    """
    if device.device.type == "cuda":
        torch.cuda.empty_cache()
    if distributed.size() > 1:  # the others wait inside the step for this one
        raise DeviceError(
            f"out of GPU memory in a training step on the {batch} images of a batch that "
            f"{distributed.size()} processes share: more processes make each part smaller "
            "(torchrun --nproc-per-node), a smaller --image-size needs less"
        )
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
