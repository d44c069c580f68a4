"""What to do where the device's memory is smaller than a batch."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import torch

from bundle.errors import DeviceError
from training import distributed
from training.device import Device


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
