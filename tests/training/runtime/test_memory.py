from __future__ import annotations

import pytest
import torch

from labelcurve.bundle.errors import DeviceError
from labelcurve.training.runtime.device import FP32_CPU
from labelcurve.training.runtime.memory import EnoughMemory, more_parts


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_want_of_memory_is_noticed_whoever_wanted_it(error: Exception) -> None:
    with EnoughMemory() as enough:
        raise error
    assert not enough


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert triggered"), ValueError("out of memory")]
)
def test_other_errors_are_raised(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), EnoughMemory():
        raise error


def test_enough_is_enough() -> None:
    with EnoughMemory() as enough:
        pass
    assert enough


def test_the_parts_of_a_batch_are_doubled_down_to_two_images_each() -> None:
    said: list[str] = []
    assert more_parts(1, 4, FP32_CPU, said.append) == 2
    assert more_parts(4, 16, FP32_CPU, said.append) == 8
    assert said[1].startswith("out of GPU memory: from now on each batch of 16 images goes through")
    assert "in 8 parts" in said[1]
    for parts, batch, images in ((1, 3, 3), (2, 5, 3), (2, 4, 2)):
        with pytest.raises(DeviceError, match=f"too small for a training step on {images} images"):
            more_parts(parts, batch, FP32_CPU, said.append)
    assert len(said) == 2
