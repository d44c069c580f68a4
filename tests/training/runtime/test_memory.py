from __future__ import annotations

import pytest
import torch

from labelcurve.training.runtime.memory import EnoughMemory


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
